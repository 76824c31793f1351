"""Other libraries doing the same work. Each is optional: what is missing is listed with how to get it."""

import importlib
from types import ModuleType

HOW_TO_GET = {
    "warp_splat": "pip install warp-lang",
    "numba_splat": "pip install numba",
    "nerfacc_render": "pip install nerfacc (it compiles itself with nvcc when first used)",
    "torch_harmonics_attention": "pip install --no-deps torch-harmonics, in the version built for this torch",
    "open3d_raycast": "pip install open3d-cpu, and the system's libusb-1.0 (apt-get install libusb-1.0-0)",
}


def load(name: str, missing: list[str]) -> ModuleType | None:
    """The peer's module, or None after adding a line to `missing` that says why and how to get it."""
    try:
        return importlib.import_module(f"benchmarks.peers.{name}")
    except (ImportError, OSError) as error:  # OSError: a system library that the package needs
        reason = " ".join(str(error).split())
        line = f"{name}: {reason}. To get it: {HOW_TO_GET[name]}"
        if line not in missing:
            missing.append(line)
        return None
