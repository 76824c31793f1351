// Atomics: one compare-and-swap loop for all of them, as blocks run on several OS threads at once.
#include "simt/block.h"
#include "simt/race.h"
#include "simt/runtime.h"

namespace evoworld::simt {
namespace {

template <class T>
T combined(Atomic op, T before, T operand, T expected) {
  switch (op) {
    case Atomic::add:
      if constexpr (std::is_same_v<T, int>) {
        return static_cast<int>(static_cast<unsigned>(before) + static_cast<unsigned>(operand));  // wraps
      } else {
        return before + operand;
      }
    case Atomic::exchange:
      return operand;
    case Atomic::compare_exchange:
      return before == expected ? operand : before;
    case Atomic::smallest:
      return operand < before ? operand : before;
    case Atomic::largest:
      return before < operand ? operand : before;
    case Atomic::bit_or:
      if constexpr (std::is_integral_v<T>) return before | operand;
      break;
    case Atomic::bit_and:
      if constexpr (std::is_integral_v<T>) return before & operand;
      break;
  }
  __builtin_unreachable();
}

}  // namespace

template <class T>
T atomic_update(Atomic op, T* address, T operand, T expected, Where where) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) {
    fail(where, "atomic: the address is not a multiple of %zu", sizeof(T));
  }
  race::access(address, sizeof(T), race::Kind::atomic, __builtin_return_address(0));
  T before, after;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  do {
    after = combined(op, before, operand, expected);
  } while (!__atomic_compare_exchange(address, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  if (Block::current() != nullptr) Block::current()->atomic_done();
  return before;
}

void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template int atomic_update(Atomic, int*, int, int, Where);
template unsigned atomic_update(Atomic, unsigned*, unsigned, unsigned, Where);
template unsigned long long atomic_update(Atomic, unsigned long long*, unsigned long long, unsigned long long, Where);
template float atomic_update(Atomic, float*, float, float, Where);
template double atomic_update(Atomic, double*, double, double, Where);

}  // namespace evoworld::simt
