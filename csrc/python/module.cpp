// evoworld._C: how this installation was built. The ops do not need it.
#include <pybind11/pybind11.h>

#include "build_facts.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "How this installation of evoworld was built.";
  module.def(
      "build_facts",
      [] {
        pybind11::dict facts;
        facts["version"] = EW_VERSION;
        facts["compiler"] = EW_COMPILER;
        facts["flags"] = EW_CXX_FLAGS;
        facts["instruction_sets"] = EW_INSTRUCTION_SETS;
        facts["cuda_compiler"] = EW_CUDA_COMPILER;
        facts["cuda_architectures"] = EW_CUDA_ARCHITECTURES;
        facts["torch_version"] = EW_TORCH_VERSION;
        facts["torch_target"] = EW_TORCH_TARGET;
        return facts;
      },
      "Version, compiler, flags, instruction sets, CUDA architectures and torch of the build, as strings.\n"
      "Lists are joined by semicolons; what was not there is \"none\" or empty.");
}
