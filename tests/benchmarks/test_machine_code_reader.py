"""Reading machine code: names, occupancy as NVIDIA's calculator has it, and a kernel compiled to spill."""

import subprocess

import pytest

from benchmarks.gpu.machine_code import Kernel, find_tool, read_kernels, scalar_reductions, vector_reductions


@pytest.mark.parametrize(
    ("name", "family", "arguments"),
    [
        ("void evoworld::some_op_kernel<evoworld::Half, 16, (bool)1>(float*, int)", "some_op_kernel", "Half, 16, 1"),
        ("evoworld::some_op_kernel(evoworld::GridView, float const*)", "some_op_kernel", ""),
        ("void evoworld::(anonymous namespace)::some_op_kernel<(int)4>(float*)", "some_op_kernel", "4"),
        ("void evoworld::some_kernel<evoworld::Pair<float, 2>, 3>(int)", "some_kernel", "Pair<float, 2>, 3"),
        ("void cub::DeviceRadixSortKernel<evoworld::Key>(int)", "", ""),
    ],
)
def test_names(name, family, arguments):
    kernel = Kernel("sm_90a", "", name)
    assert (kernel.family, kernel.arguments if family else "") == (family, arguments)


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "warps"),
    [
        ("sm_90a", 256, 32, 0, 64),
        ("sm_90a", 256, 33, 0, 48),  # registers come in units of 8: 40 a thread, 6 blocks
        ("sm_90a", 256, 64, 0, 32),
        ("sm_90a", 128, 96, 0, 20),
        ("sm_90a", 128, 255, 0, 8),
        ("sm_90a", 64, 16, 0, 64),
        ("sm_90a", 32, 16, 0, 32),  # at most 32 blocks
        ("sm_90a", 256, 32, 48 << 10, 32),  # 49 KB a block of 228
        ("sm_80", 256, 32, 48 << 10, 24),  # of 164
        ("sm_120", 256, 32, 48 << 10, 16),  # of 100
        ("sm_120", 256, 32, 0, 48),
        ("sm_120", 1024, 32, 0, 32),
    ],
)
def test_occupancy(architecture, threads, registers, shared, warps):
    most = 48 if architecture == "sm_120" else 64
    kernel = Kernel(architecture, "", "", registers=registers, threads=threads)
    assert kernel.occupancy(shared) == warps / most


SOURCE = """
namespace evoworld {
__global__ void __launch_bounds__(96) spilling_kernel(const float4* from, float* to, const int* places) {
  __shared__ float kept[96];
  float values[32];
  for (int i = 0; i < 8; ++i) {
    const float4 read = from[i * 96 + threadIdx.x];
    values[4 * i] = read.x, values[4 * i + 1] = read.y, values[4 * i + 2] = read.z, values[4 * i + 3] = read.w;
  }
  float sum = 0;
  for (int i = 0; i < 40; ++i) sum += values[places[i] & 31];  // an array indexed at run time has to be in memory
  kept[threadIdx.x] = sum;
  __syncthreads();
  atomicAdd(to + threadIdx.x, kept[95 - threadIdx.x]);
}
template <int kCount> __global__ void add_kernel(float4* to) {
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x < kCount) atomicAdd(to + threadIdx.x, float4{1, 2, 3, 4});
#endif
}
template __global__ void add_kernel<7>(float4*);
}
"""


def test_what_a_kernel_was_compiled_to_is_found(tmp_path):
    nvcc = find_tool("nvcc")
    if nvcc is None or find_tool("cuobjdump") is None:
        pytest.skip("nvcc or cuobjdump was not found")
    (tmp_path / "some.cu").write_text(SOURCE)
    codes = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in ("80", "90a")]
    library = tmp_path / "some.so"
    command = [nvcc, *codes, "-Xcompiler=-fPIC", "-shared", tmp_path / "some.cu", "-o", library]
    subprocess.run(command, check=True)
    kernels = {(k.family, k.architecture): k for k in read_kernels(library)}
    assert set(kernels) == {(f, a) for f in ("spilling_kernel", "add_kernel") for a in ("sm_80", "sm_90a")}
    for architecture in ("sm_80", "sm_90a"):
        spilling = kernels["spilling_kernel", architecture]
        assert spilling.stack == 128 and spilling.spills > 1 and spilling.shared == 384 and spilling.threads == 96
        assert spilling.count("LDG.E.128") == 8 and scalar_reductions(spilling) == 1 and spilling.registers > 32
        assert kernels["add_kernel", architecture].arguments == "7"
    assert vector_reductions(kernels["add_kernel", "sm_90a"]) == 1
    assert vector_reductions(kernels["add_kernel", "sm_80"]) == 0
