"""One table of cases for each op, and the rule by which any backend is compared with the reference.

The rule. Each output and gradient is computed three times from the same inputs: by the reference in float64 (truth),
by the reference in the inputs' own precision, and by the backend. With errors as the largest absolute difference from
the truth over the tensor, and ``eps`` that of the tensor's dtype::

    error(backend) <= 2 * error(same-precision reference) + 8 * eps * max |truth|

What the truth has infinite must be just that. Attention has its own count of roundings (`AttentionCase.rounding`).

For this to be a statement about rounding, no *decision* may hang on it: cases keep only rays that never come within
rounding of a cell's face, of ``far`` or of ``min_transmittance``, or take numbers for which all of that is exact.

The scene is a room (a box seen from inside by a panorama); what is random comes from the case's name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from . import _native, reference
from .geometry import SparseGrid
from .ops.backend import available, backend
from .ops.library import triton_interprets
from .testing_attention import AttentionCase, largest_finite
from .testing_scene import (
    ROOM,
    cell_is_clear,
    chosen_rays,
    density_of,
    distance_to_wall,
    grid_of,
    is_clear,
    place,
    rays_of,
)

Arguments = dict[str, object]
_REFERENCE_FACTOR = 2.0
_ROUNDINGS = 8.0
_WITHOUT_GRADIENT = ("jitter", "query_directions", "key_directions")


@dataclass(frozen=True)
class Case:
    """One call of an op: ``build()`` makes its arguments by name, the same ones each time."""

    name: str
    channels: int = 3
    dtype: torch.dtype = torch.float32  # of the features; all else is float32
    num_rays: int = 53
    voxel_size: float = 0.21
    room_at: tuple[float, float, float] = (-1.31, -1.07, -0.93)  # its lowest corner, metres
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rays: str = "panorama"  # see rays_of()
    image_width: int = 0
    misaligned: int = 0  # elements of their memory before the features, as a slice has them
    grid: str = "room"  # "room", "patch" (one spot of a wall) or "empty"

    def rounding(self, name: str, dtype: torch.dtype, truth: dict[str, Tensor]) -> float:
        """What one rounding may change of a result."""
        return torch.finfo(dtype).eps * largest_finite(truth[name])

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(self.name.encode()))

    def eye(self) -> Tensor:  # [3] metres, off the room's centre
        return torch.tensor(self.room_at) + torch.tensor(ROOM) * torch.tensor([0.45, 0.55, 0.4])


@dataclass(frozen=True)
class ScatterCase(Case):
    """A call of `voxel_scatter`."""

    op: ClassVar[str] = "voxel_scatter"
    depths: str = "wall"  # "wall", "invalid" (zero, negative, infinite, NaN among them), "anywhere" or "one point"
    weights: bool = True

    def build(self) -> Arguments:
        """The op's arguments by name."""
        draw = self.generator()
        with backend("reference"):  # the one that is tested need not serve the CPU, where a case is built
            grid = grid_of(self)
        origins, directions = rays_of(self, draw)
        depth = distance_to_wall(self, origins, directions)
        if self.depths == "anywhere":
            depth = depth * (0.2 + torch.rand(depth.shape, generator=draw))
        elif self.depths == "one point":
            origins, directions, depth = (x[:1].expand_as(x).contiguous() for x in (origins, directions, depth))
        features = torch.randn(depth.shape[0], self.channels, generator=draw)
        if self.depths == "invalid":
            bad = torch.tensor([0.0, -1.0, float("inf"), -float("inf"), float("nan")])
            depth[: bad.shape[0]] = bad
            features[: bad.shape[0]] = float("nan")  # what no depth goes with may be anything
        clear = ~torch.isfinite(depth) | cell_is_clear(grid, origins, directions, depth[:, None])[:, 0]
        chosen = chosen_rays(self, clear)
        origins, directions, depth, features = (x[chosen] for x in (origins, directions, depth, features))
        weight = 2 * torch.rand(depth.shape[0], generator=draw) - 0.3 if self.weights else None
        return {
            "features": place(self, features),
            "depth": depth,
            "origins": origins,
            "directions": directions,
            "grid": grid,
            "weight": weight,
            "image_width": self.image_width,
        }


@dataclass(frozen=True)
class RenderCase(Case):
    """A call of `volume_render`."""

    op: ClassVar[str] = "volume_render"
    density: str = "cloud"  # see density_of()
    near: float = 0.1
    far: float = 4.9
    step: float = 0.11
    min_transmittance: float = 1e-4
    jitter: bool = False

    def build(self) -> Arguments:
        """The op's arguments by name."""
        draw = self.generator()
        with backend("reference"):
            grid = grid_of(self)
        origins, directions = rays_of(self, draw)
        jitter = torch.rand(origins.shape[0], generator=draw) if self.jitter else None
        features = torch.randn(grid.num_voxels, self.channels, generator=draw)
        arguments = {
            "features": place(self, features),
            "density": density_of(self, grid, draw),
            "origins": origins,
            "directions": directions,
            "grid": grid,
            "near": self.near,
            "far": self.far,
            "step": self.step,
            "min_transmittance": self.min_transmittance,
            "jitter": jitter,
        }
        chosen = chosen_rays(self, is_clear(**arguments))
        for name in ("origins", "directions", "jitter"):
            if arguments[name] is not None:
                arguments[name] = arguments[name][chosen]
        return {**arguments, "image_width": self.image_width}


def _cases(base: Case, *variants: dict) -> dict[str, Case]:
    return {variant["name"]: replace(base, **variant) for variant in variants}


_SHARED = (
    *({"name": f"channels_{channels}", "channels": channels} for channels in (1, 2, 3, 4, 6, 8, 16, 17, 32, 64, 65)),
    *({"name": f"half_{channels}", "channels": channels, "dtype": torch.float16} for channels in (3, 4, 16, 32, 64)),
    *({"name": f"bfloat16_{channels}", "channels": channels, "dtype": torch.bfloat16} for channels in (8, 17, 64)),
    {"name": "misaligned", "channels": 4, "misaligned": 1},
    {"name": "misaligned_half", "channels": 8, "dtype": torch.float16, "misaligned": 1},
    {"name": "half_on_8_bytes", "channels": 8, "dtype": torch.float16, "misaligned": 4},
    {"name": "image", "rays": "image", "image_width": 40, "num_rays": 320, "channels": 4},
    {"name": "image_of_odd_width", "rays": "image", "image_width": 37, "num_rays": 301},
    {"name": "image_narrower_than_a_tile", "rays": "image", "image_width": 5, "num_rays": 97},
    {"name": "image_width_beyond_the_rays", "image_width": 1 << 40},
    {"name": "image_width_of_no_image", "image_width": 20, "num_rays": 97},
    {"name": "uneven_rays", "rays": "uneven", "num_rays": 97},
    {"name": "poles", "rays": "poles"},
    {"name": "seam", "rays": "seam"},
    {"name": "zero_components", "rays": "axes", "voxel_size": 0.25, "room_at": (-1.5, -1.25, -1.0)},
    {"name": "from_outside", "rays": "outside"},
    {"name": "behind", "rays": "away"},
    {"name": "negative_coordinates", "room_at": (-9.0, -8.0, -7.0)},
    {"name": "far_from_origin", "room_at": (300.0, -300.0, 310.0)},
    {"name": "grid_origin", "origin": (0.31, -0.17, 0.05)},
    {"name": "several_pages", "voxel_size": 0.027, "num_rays": 201},
    {"name": "patch", "grid": "patch", "num_rays": 301},
    {"name": "empty_grid", "grid": "empty"},
    {"name": "no_rays", "num_rays": 0},
    {"name": "one_ray", "num_rays": 1},
)

SCATTER_CASES: dict[str, ScatterCase] = _cases(
    ScatterCase(""),
    *_SHARED,
    {"name": "no_weight", "weights": False},
    {"name": "invalid_depth", "depths": "invalid"},
    {"name": "depth_anywhere", "depths": "anywhere", "num_rays": 201},
    {"name": "one_point", "depths": "one point", "num_rays": 257, "channels": 17},
    {"name": "many_rays", "num_rays": 3001, "channels": 4, "voxel_size": 0.1},
)

_EXACT_MARCH = {"near": 0.125, "step": 0.125, "min_transmittance": 0.0}

RENDER_CASES: dict[str, RenderCase] = _cases(
    RenderCase(""),
    *({**shared, **_EXACT_MARCH} if shared["name"] == "zero_components" else shared for shared in _SHARED),
    {"name": "jitter", "jitter": True},
    {"name": "exact", "min_transmittance": 0.0, "jitter": True},
    {"name": "transparent", "density": "zero"},
    {"name": "opaque", "density": "opaque"},
    {"name": "opaque_exact", "density": "opaque", "min_transmittance": 0.0},
    {"name": "dense", "density": "dense"},
    {"name": "thin", "density": "thin"},
    {"name": "negative_density", "density": "signed", "min_transmittance": 0.0},
    {"name": "holes", "density": "holes", "channels": 8},
    {"name": "coarse_step", "step": 0.9, "jitter": True},
    {"name": "fine_step", "step": 0.013, "num_rays": 17},
    {"name": "rays_of_uneven_length", "rays": "uneven", "num_rays": 97, "jitter": True, "density": "opaque"},
    {"name": "many_rays", "num_rays": 1203, "channels": 4, "step": 0.19},
    {"name": "far_is_near", "near": 2.0, "far": 2.0},
    {"name": "starts_beyond", "near": 20.0, "far": 25.0},
)


def under_simt() -> bool:
    """Whether backend ``cpu`` is the CUDA kernels, executed on the CPU: a library that only tests build."""
    return _native.fact("cpu", "evoworld_simt") is not None


def backends(op: str) -> list[tuple[str, str]]:
    """Each backend that can serve the op here, with a device for its tensors."""
    devices = {"cuda": "cuda", "triton": "cpu" if triton_interprets() else "cuda"}
    return [(name, devices.get(name, "cpu")) for name, missing in available(op).items() if missing is None]


def evaluate(
    op: Callable[..., tuple[Tensor, ...]],
    arguments: Arguments,
    dtype: torch.dtype | None = None,  # all tensors in this precision instead of their own
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Outputs (``0``, ``1``, ...) of an op and gradients (``d_<argument>``), for fixed upstream gradients."""
    moved = {
        name: _moved(value, device, dtype) if isinstance(value, (Tensor, SparseGrid)) else value
        for name, value in arguments.items()
    }
    leaves = {
        name: value.requires_grad_()
        for name, value in moved.items()
        if isinstance(value, Tensor) and name not in _WITHOUT_GRADIENT
    }
    outputs = op(**moved)
    draw = torch.Generator().manual_seed(0)
    # Eighths are exact in every dtype.
    upstream = [(torch.randint(-8, 9, x.shape, generator=draw) / 8).to(x) for x in outputs]
    loss = sum((x * d_x).sum() for x, d_x in zip(outputs, upstream, strict=True) if x.requires_grad)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    results = {str(i): x.detach() for i, x in enumerate(outputs)}
    results.update({f"d_{name}": x for name, x in zip(leaves, gradients, strict=True)})
    return {name: x.cpu() for name, x in results.items()}


def on_device(arguments: Arguments, device: torch.device | str) -> Arguments:
    """The arguments with their tensors and grid on a device."""
    return {
        name: value.to(device) if isinstance(value, (Tensor, SparseGrid)) else value
        for name, value in arguments.items()
    }


def _moved(value: Tensor | SparseGrid, device: torch.device | str, dtype: torch.dtype | None) -> Tensor | SparseGrid:
    """The grid, or a copy of the tensor with the same strides and alignment, on a device."""
    if isinstance(value, SparseGrid):
        return value.to(device)
    value = value.detach()
    if value.numel() == 0:
        return value.to(device=device, dtype=dtype, copy=True)
    reach = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    memory = value.as_strided((value.storage_offset() + reach + 1,), (1,), 0)
    memory = memory.to(device=device, dtype=dtype, copy=True)
    return memory.as_strided(value.shape, value.stride(), value.storage_offset())


def check_against_reference(
    op: Callable[..., tuple[Tensor, ...]],
    case: Case | AttentionCase,
    device: torch.device | str = "cpu",
) -> None:
    """Raises an AssertionError unless outputs and gradients of ``op`` for the case obey the rule of this module.

    Example:
        >>> check_against_reference(reference.voxel_scatter, SCATTER_CASES["poles"])
    """
    arguments, specification = case.build(), getattr(reference, case.op)
    truth = evaluate(specification, arguments, torch.float64)
    expected = evaluate(specification, arguments)
    for name, found in evaluate(op, arguments, device=device).items():
        where = f"{case.op}, case {case.name}, {name}"
        assert found.dtype == expected[name].dtype, f"{where}: {found.dtype}, not {expected[name].dtype}"
        assert found.shape == truth[name].shape, f"{where}: {list(found.shape)}, not {list(truth[name].shape)}"
        error = _largest(_difference(found, truth[name]))
        allowed = _REFERENCE_FACTOR * _largest(_difference(expected[name], truth[name]))
        allowed += _ROUNDINGS * case.rounding(name, found.dtype, truth)
        assert error <= allowed, f"{where}: off by {error:.3g}, allowed {allowed:.3g}"  # False for NaN


def _difference(found: Tensor, truth: Tensor) -> Tensor:
    return (found.double() - truth).masked_fill(found == truth, 0)  # infinities too


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0
