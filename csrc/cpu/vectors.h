// One register of floats and what the attention kernels do with it, for the instruction set that is being compiled.
#pragma once

#include "core/common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace evoworld {
namespace EW_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Arithmetic operators work on these lane by lane; a comparison gives all ones or all zeros.
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t IntVector __attribute__((vector_size(kLanes * sizeof(int32_t))));

EW_HD Vector load(const float* values) {  // [kLanes], aligned in any way
  Vector result;
  memcpy(&result, values, sizeof result);
  return result;
}

EW_HD void store(float* values, Vector vector) { memcpy(values, &vector, sizeof vector); }

EW_HD Vector broadcast(float value) { return value - Vector{}; }  // not +, which would change -0

// a * b + c, rounded once where the instruction set has that.
EW_HD Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

EW_HD Vector larger(Vector a, Vector b) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, a, b);  // _mm512_max_ps has g++ 12 warn of its own header
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// Below this 2^x is not a normal number: exp2 gives 0.
constexpr float kMinExponent = -126.0f;

// 2^r on [0, 1] by polynomials with the least relative error among those that are exactly 1 at 0.
constexpr float kExp2Degree4[5] = {1.0f, 0.69304484f, 0.2412802f, 0.052242473f, 0.013426684f};
constexpr float kExp2Degree6[7] = {1.0f,          0.69314706f,   0.24022931f,   0.055485282f,
                                   0.0096754521f, 0.0012467847f, 0.00021612915f};

// 2^x for x < 128 by 2^floor(x) 2^r; -inf gives 0 and NaN stays. kDegree 6: good to about one unit in the last place;
// kDegree 4: to 3e-6, far below the rounding to bfloat16 that is to follow.
template <int kDegree>
EW_HD Vector exp2(Vector x) {
  static_assert(kDegree == 4 || kDegree == 6);
  const float* const coefficients = kDegree == 4 ? kExp2Degree4 : kExp2Degree6;
#if defined(__AVX512F__)
  const Vector r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
#else
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
  const Vector clamped = x < kMinExponent ? broadcast(kMinExponent) : x;
  const Vector shifted = (clamped - 0.5f) + kRound;
  const Vector r = clamped - (shifted - kRound);
#endif
  Vector p = broadcast(coefficients[kDegree]);
#pragma GCC unroll 8
  for (int i = kDegree - 1; i >= 0; --i) p = multiply_add(p, r, broadcast(coefficients[i]));
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, broadcast(kMinExponent), _CMP_NLT_UQ), p, x);
#else
  IntVector power, bits;
  memcpy(&power, &shifted, sizeof power);
  memcpy(&bits, &p, sizeof bits);
  bits += power << 23;
  memcpy(&p, &bits, sizeof p);
  p = x < kMinExponent ? Vector{} : p;
  return x == x ? p : x;
#endif
}

}  // namespace EW_ISA
}  // namespace evoworld
