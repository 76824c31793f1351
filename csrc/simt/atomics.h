// CUDA's atomics. All are relaxed, as on a GPU: they order nothing but the accesses to their own address.
#pragma once

#include "simt/runtime.h"
#include "simt/vectors.h"

#define EW_SIMT_WHERE ::evoworld::simt::Where where = ::evoworld::simt::Where::current()
#define EW_SIMT_ATOMIC(name, op, T)                                                                                 \
  inline T name(T* address, T value, EW_SIMT_WHERE) {                                                               \
    return ::evoworld::simt::atomic_update(::evoworld::simt::Atomic::op, address, value, static_cast<T>(0), where); \
  }
#define EW_SIMT_INTEGER_ATOMICS(T)                                                                               \
  EW_SIMT_ATOMIC(atomicAdd, add, T)                                                                              \
  EW_SIMT_ATOMIC(atomicExch, exchange, T)                                                                        \
  EW_SIMT_ATOMIC(atomicMin, smallest, T)                                                                         \
  EW_SIMT_ATOMIC(atomicMax, largest, T)                                                                          \
  EW_SIMT_ATOMIC(atomicOr, bit_or, T)                                                                            \
  EW_SIMT_ATOMIC(atomicAnd, bit_and, T)                                                                          \
  inline T atomicCAS(T* address, T expected, T value, EW_SIMT_WHERE) {                                           \
    return ::evoworld::simt::atomic_update(::evoworld::simt::Atomic::compare_exchange, address, value, expected, \
                                           where);                                                               \
  }
EW_SIMT_INTEGER_ATOMICS(int)
EW_SIMT_INTEGER_ATOMICS(unsigned)
EW_SIMT_INTEGER_ATOMICS(unsigned long long)
EW_SIMT_ATOMIC(atomicAdd, add, float)
EW_SIMT_ATOMIC(atomicAdd, add, double)
EW_SIMT_ATOMIC(atomicExch, exchange, float)
#undef EW_SIMT_INTEGER_ATOMICS
#undef EW_SIMT_ATOMIC

// Of sm_90 and later: one instruction, atomic for each component.
inline float2 atomicAdd(float2* address, float2 value, EW_SIMT_WHERE) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(float2) != 0) {
    evoworld::simt::fail(where, "atomicAdd of float2: the address is not a multiple of 8");
  }
  return {atomicAdd(&address->x, value.x, where), atomicAdd(&address->y, value.y, where)};
}
inline float4 atomicAdd(float4* address, float4 value, EW_SIMT_WHERE) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(float4) != 0) {
    evoworld::simt::fail(where, "atomicAdd of float4: the address is not a multiple of 16");
  }
  return {atomicAdd(&address->x, value.x, where), atomicAdd(&address->y, value.y, where),
          atomicAdd(&address->z, value.z, where), atomicAdd(&address->w, value.w, where)};
}
#undef EW_SIMT_WHERE
