// Host and device basics shared by every kernel: the function qualifier, small vectors, storage types, 1 - exp(-x).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define EW_HD __host__ __device__ __forceinline__
#else
#define EW_HD inline __attribute__((always_inline))
#endif

namespace evoworld {

struct Float3 {
  float x, y, z;
};

struct Int3 {
  int32_t x, y, z;
};

// Storage types are opaque 16-bit words here: core/ computes in float32.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// fminf and fmaxf are calls into libm on the CPU (they mind NaN): a tenth of a render's time. These give b for NaN.
EW_HD float smaller(float a, float b) { return a < b ? a : b; }
EW_HD float larger(float a, float b) { return a > b ? a : b; }

// Asks for the cache line at an address; a device hides the latency by other threads instead.
EW_HD void prefetch([[maybe_unused]] const void* address) {
#ifndef __CUDA_ARCH__
  __builtin_prefetch(address);
#endif
}

EW_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

EW_HD float widen(float value) { return value; }
EW_HD float widen(BFloat16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }
EW_HD float widen(Half value) {
  // Shift exponent and mantissa into place and rescale by 2^(127 - 15): exact, subnormals included, and free of
  // branches.
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const float scaled = bits_to_float(magnitude) * bits_to_float(0x77800000u);
  const float special = bits_to_float(magnitude | 0x7f800000u);  // infinities and NaN keep an exponent of all ones
  const float result = magnitude >= 0x0f800000u ? special : scaled;
  return sign ? -result : result;
}

// The nearest value of the storage type, the even one of two; NaN stays NaN.
EW_HD void narrow(float value, float* out) { *out = value; }
EW_HD void narrow(float value, BFloat16* out) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}
EW_HD void narrow(float value, Half* out) {
  uint32_t bits, small;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const float shifted = bits_to_float(magnitude) + 0.5f;  // a unit in the last place of 0.5 is a subnormal half's
  memcpy(&small, &shifted, sizeof small);
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t number = magnitude < 0x38800000u ? small - 0x3f000000u : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  out->bits = static_cast<uint16_t>((bits >> 16 & 0x8000u) | (magnitude < 0x47800000u ? number : special));
}

// 1 - exp(-x) to about one unit in the last place, small x included (1 - expf(-x) is off by 2e-4 at x = 1e-4).
// exp(y) = 2^n exp(r) with |r| <= ln(2) / 2; the Taylor series of expm1(r) to degree 7 is good to 5e-9 there.
EW_HD float one_minus_exp_negative(float x) {
  const float y = smaller(larger(-x, -87.0f), 87.0f);
  const float n = rintf(y * 1.44269504f);
  const float r = fmaf(n, -1.42860677e-6f, fmaf(n, -0.693145752f, y));
  float p = 1.0f / 5040.0f;
  p = fmaf(p, r, 1.0f / 720.0f);
  p = fmaf(p, r, 1.0f / 120.0f);
  p = fmaf(p, r, 1.0f / 24.0f);
  p = fmaf(p, r, 1.0f / 6.0f);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p * r, r, r);
  const float power = bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
  return x == x ? -fmaf(power, p, power - 1.0f) : x;  // the clamp has dropped a NaN
}

}  // namespace evoworld
