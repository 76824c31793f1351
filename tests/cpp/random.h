// Seeded random numbers for tests, the same on every machine, and values in each storage type.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/storage.h"

namespace evoworld::testing {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  float uniform(float low, float high) { return low + (high - low) * (static_cast<float>(engine_() >> 40) * 0x1p-24f); }
  int below(int count) { return static_cast<int>(engine_() % static_cast<uint64_t>(count)); }
  bool chance(float probability) { return uniform(0.0f, 1.0f) < probability; }
  Float3 point(float low, float high) { return {uniform(low, high), uniform(low, high), uniform(low, high)}; }

  Float3 direction() {
    for (;;) {
      const Float3 p = point(-1.0f, 1.0f);
      const float length = std::sqrt(p.x * p.x + p.y * p.y + p.z * p.z);
      if (length > 0.1f && length < 1.0f) return {p.x / length, p.y / length, p.z / length};
    }
  }

  std::vector<float> uniforms(int64_t count, float low, float high) {
    std::vector<float> values(count);
    for (float& value : values) value = uniform(low, high);
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

// What the bits of an IEEE half stand for, by the definition of the format.
inline double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

inline double bfloat16_value(uint16_t bits) {
  const int exponent = bits >> 7 & 255, mantissa = bits & 127;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 255) return mantissa != 0 ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -133) : std::ldexp(128 + mantissa, exponent - 134));
}

// Random values between -2 and 2 as a kernel reads them, in exactly as many bytes as they take, and as numbers.
struct StoredValues {
  Storage storage;
  std::vector<unsigned char> bytes;
  std::vector<double> values;

  StoredValues(Random& random, Storage type, int64_t count) : storage(type) {
    for (int64_t i = 0; i < count; ++i) {
      if (type == Storage::float32) {
        const float value = random.uniform(-2.0f, 2.0f);
        append(&value, sizeof value, value);
        continue;
      }
      // A random sign and mantissa under an exponent from that of 1/16 to that of 1.
      const uint16_t sign = random.chance(0.5f) ? 0x8000 : 0, down = static_cast<uint16_t>(random.below(5));
      const uint16_t half = static_cast<uint16_t>(sign | (15 - down) << 10 | random.below(1024));
      const uint16_t bfloat16 = static_cast<uint16_t>(sign | (127 - down) << 7 | random.below(128));
      const bool is_half = type == Storage::float16;
      append(is_half ? &half : &bfloat16, sizeof half, is_half ? half_value(half) : bfloat16_value(bfloat16));
    }
    bytes.shrink_to_fit();
  }

 private:
  void append(const void* from, size_t size, double value) {
    const auto* first = static_cast<const unsigned char*>(from);
    bytes.insert(bytes.end(), first, first + size);
    values.push_back(value);
  }
};

constexpr Storage kStorages[] = {Storage::float32, Storage::float16, Storage::bfloat16};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// Whether the largest difference is within `tolerance` of the largest magnitude of the truth.
inline bool close(const std::vector<float>& values, const std::vector<double>& truth, double tolerance) {
  double scale = 1e-30, error = 0.0;
  for (size_t i = 0; i < truth.size(); ++i) {
    scale = std::fmax(scale, std::fabs(truth[i]));
    if (!(std::fabs(values[i] - truth[i]) <= error)) error = std::fabs(values[i] - truth[i]);  // keeps a NaN
  }
  return values.size() == truth.size() && error <= tolerance * scale;
}

}  // namespace evoworld::testing
