// CUDA's short vectors, with CUDA's alignment, and dim3.
#pragma once

// alignas(bytes): two and four components are loaded and stored at once.
#define EW_SIMT_VECTORS(T, name)                                                \
  struct name##1 { T x; };                                                      \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                            \
  struct name##3 { T x, y, z; };                                                \
  struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##1 make_##name##1(T x) { return {x}; }                            \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                    \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }            \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EW_SIMT_VECTORS(signed char, char)
EW_SIMT_VECTORS(unsigned char, uchar)
EW_SIMT_VECTORS(short, short)
EW_SIMT_VECTORS(unsigned short, ushort)
EW_SIMT_VECTORS(int, int)
EW_SIMT_VECTORS(unsigned, uint)
EW_SIMT_VECTORS(long long, longlong)
EW_SIMT_VECTORS(unsigned long long, ulonglong)
EW_SIMT_VECTORS(float, float)
EW_SIMT_VECTORS(double, double)
#undef EW_SIMT_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
