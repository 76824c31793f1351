// The CPU kernels are compiled once for each instruction set (EW_ISA names the namespace) and chosen when first called.
#pragma once

namespace evoworld {

enum class Isa { baseline, avx2, avx512, avx512_bf16 };

// The best instruction set that this processor has, or the one named by EVOWORLD_CPU_ISA if it has that.
Isa current_isa();
const char* isa_name(Isa isa);

}  // namespace evoworld

// Defines `result name parameters` (parameters in parentheses), which calls the copy for the current instruction set.
#if defined(EW_X86_KERNELS)
#define EW_DISPATCH_ISA(name, parameters, ...) \
  namespace baseline {                         \
  void name parameters;                        \
  }                                            \
  namespace avx2 {                             \
  void name parameters;                        \
  }                                            \
  namespace avx512 {                           \
  void name parameters;                        \
  }                                            \
  void name parameters {                       \
    switch (current_isa()) {                   \
      case Isa::avx512_bf16:                   \
      case Isa::avx512:                        \
        return avx512::name(__VA_ARGS__);      \
      case Isa::avx2:                          \
        return avx2::name(__VA_ARGS__);        \
      case Isa::baseline:                      \
        return baseline::name(__VA_ARGS__);    \
    }                                          \
  }
#else
#define EW_DISPATCH_ISA(name, parameters, ...) \
  namespace baseline {                         \
  void name parameters;                        \
  }                                            \
  void name parameters { return baseline::name(__VA_ARGS__); }
#endif

// The same for kernels that have a fourth copy, with products of bfloat16: those of sphere_attention.
#if defined(EW_X86_KERNELS)
#define EW_DISPATCH_ISA_BF16(name, parameters, ...) \
  namespace baseline {                              \
  void name parameters;                             \
  }                                                 \
  namespace avx2 {                                  \
  void name parameters;                             \
  }                                                 \
  namespace avx512 {                                \
  void name parameters;                             \
  }                                                 \
  namespace avx512_bf16 {                           \
  void name parameters;                             \
  }                                                 \
  void name parameters {                            \
    switch (current_isa()) {                        \
      case Isa::avx512_bf16:                        \
        return avx512_bf16::name(__VA_ARGS__);      \
      case Isa::avx512:                             \
        return avx512::name(__VA_ARGS__);           \
      case Isa::avx2:                               \
        return avx2::name(__VA_ARGS__);             \
      case Isa::baseline:                           \
        return baseline::name(__VA_ARGS__);         \
    }                                               \
  }
#else
#define EW_DISPATCH_ISA_BF16 EW_DISPATCH_ISA
#endif
