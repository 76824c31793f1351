"""Triton's kernels compile for every architecture without a GPU, and what their machine code must and must not hold.

No spills, 16-byte loads of feature rows, float reductions where rows are added to. `pytest -s` prints the table.
"""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed; it comes with torch on GPU machines")

ARCHITECTURES = (80, 90, 100, 120)
REPRESENTATIVE = ("*fp16", 16)  # on every architecture
OTHERS = (("*fp32", 32), ("*bf16", 8), ("*fp32", 3))  # on sm_90
BUILDS = [(arch, *REPRESENTATIVE) for arch in ARCHITECTURES] + [(90, *other) for other in OTHERS]
KERNELS = (
    "voxel_scatter_forward_kernel",
    "voxel_scatter_backward_kernel",
    "volume_render_forward_kernel",
    "volume_render_backward_kernel",
)
FEATURE_BYTES = {"*fp32": 4, "*fp16": 2, "*bf16": 2}
NOT_POINTERS = {"num_rays": "i32", "width": "i32"}
WANTED = {
    "WANTS_FEATURES": True,
    "WANTS_DENSITY": True,
    "WANTS_RAYS": True,
    "WANTS_GEOMETRY": True,
    "WANTS_WEIGHT": True,
}


@dataclass(frozen=True)
class Code:
    """What was read from a kernel's compiled form."""

    registers: int  # a thread
    spills: int
    shared: int  # bytes a block, dynamic
    loads: int  # instructions, of 16 bytes
    reductions: tuple[str, ...]  # kinds of float additions to memory


@cache
def compiled(kernel: str, arch: int, features: str, channels: int) -> Code:
    from evoworld.kernels import launch, volume_render, voxel_scatter
    from evoworld.kernels.ray_march import March
    from evoworld.kernels.sparse_grid import Grid
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if launch.INTERPRETED:
        pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled")
    function = getattr(volume_render if kernel.startswith("volume_render") else voxel_scatter, kernel)
    wide = kernel == "volume_render_forward_kernel"
    sizes = launch.blocks(1 << 19, channels, image_width=1024, wide=wide).sizes
    constants = {"C": channels, "INDEX": triton.language.int32, **sizes, **WANTED}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    integers, floats = ("i32",) * 3, ("fp32",) * 3
    scalars = {
        **NOT_POINTERS,
        "grid": Grid("*i32", "*i32", integers, integers, floats, "fp32"),
        "march": March(*["fp32"] * len(March._fields)),
    }
    signature, attributes = {}, {}
    for i, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in scalars:
            signature[name] = scalars[name]
        else:
            signature[name] = features if name == "features" else "*fp32"
            attributes[(i,)] = [["tt.divisibility", 16]]  # as torch allocates, and as the launcher finds out
    source = ASTSource(function, signature, constants, attributes)
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 1})
    ptx = result.asm["ptx"]
    return Code(
        *_registers_and_spills(ptx, arch),
        shared=result.metadata.shared,
        loads=len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
        reductions=tuple(sorted(set(re.findall(r"(?:atom|red)\.global\S*\.add\.((?:v\d\.)?f32)", ptx)))),
    )


def _registers_and_spills(ptx: str, arch: int) -> tuple[int, int]:
    """Registers a thread and bytes spilled, as the assembler that triton uses for the architecture reports them."""
    assembler = triton.knobs.nvidia.ptxas_blackwell if arch >= 100 else triton.knobs.nvidia.ptxas
    target = re.search(r"\.target (\w+)", ptx)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [assembler.path, "-v", f"-arch={target}", "-o", os.devnull, file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.search(r"(\d+) bytes spill stores", report)[1]
    return int(re.search(r"Used (\d+) registers", report)[1]), int(spills)


@pytest.mark.parametrize(("arch", "features", "channels"), BUILDS, ids=lambda value: str(value).strip("*"))
@pytest.mark.parametrize("kernel", KERNELS)
def test_machine_code(kernel, arch, features, channels):
    code = compiled(kernel, arch, features, channels)
    kinds = " ".join(code.reductions)
    print(
        f"\n{kernel:30} sm_{arch:<4} {features[1:]:>5} C {channels:<3} {code.registers:>4} registers "
        f"{code.shared:>5} B shared {code.spills:>4} B spilled {code.loads:>4} 16-byte loads  {kinds}"
    )
    assert code.spills == 0
    if channels * FEATURE_BYTES[features] % 16 == 0:
        assert code.loads > 0
    if kernel in ("voxel_scatter_forward_kernel", "volume_render_backward_kernel"):
        assert "f32" in code.reductions
        if arch >= 90 and channels % 4 == 0:
            assert "v4.f32" in code.reductions, "rows are added to four floats at a time"
    else:
        assert not code.reductions
