// The architectures this library holds machine code for, as nvcc lists them: "800,900,1000,1200".
#define EW_STRING(...) #__VA_ARGS__
#define EW_EXPAND(...) EW_STRING(__VA_ARGS__)

extern "C" __attribute__((visibility("default"))) const char* evoworld_cuda_architectures() {
  return EW_EXPAND(__CUDA_ARCH_LIST__);
}
