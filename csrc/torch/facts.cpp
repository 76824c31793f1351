// What a library says of itself to Python (evoworld/_native.py).
#include "torch/backend.h"

#ifdef EW_SIMT
// There only in the library that runs the CUDA kernels on the CPU, which tests may want to know.
extern "C" __attribute__((visibility("default"))) const char* evoworld_simt() { return "CUDA kernels on the CPU"; }
#endif
