// The architectures this library holds code for, as CMakeLists.txt was asked for them: "8.0 9.0a 10.0 12.0+PTX".
#ifndef EW_CUDA_ARCHITECTURES
#define EW_CUDA_ARCHITECTURES "unknown"  // compiled by hand
#endif

extern "C" __attribute__((visibility("default"))) const char* evoworld_cuda_architectures() {
  return EW_CUDA_ARCHITECTURES;
}
