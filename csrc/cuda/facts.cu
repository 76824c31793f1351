// The architectures this library holds code for, as CMakeLists.txt was asked for them: "8.0 9.0a 10.0 12.0+PTX".
#ifndef EW_CUDA_ARCHITECTURES
#define EW_CUDA_ARCHITECTURES "unknown"  // compiled by hand
#endif

#define EW_STRING(value) #value
#define EW_STRING_OF(value) EW_STRING(value)

extern "C" __attribute__((visibility("default"))) const char* evoworld_cuda_architectures() {
  return EW_CUDA_ARCHITECTURES;
}

// 13000 for CUDA 13.0: the driver's must be of this major version or a later one.
extern "C" __attribute__((visibility("default"))) const char* evoworld_cuda_runtime() {
  return EW_STRING_OF(CUDART_VERSION);
}
