// Running kernels in tests: for several schedules, and for what they report.
#pragma once

#include <string>

#include "check.h"
#include "cuda/device.h"

namespace evoworld::testing {

// Memory of a kernel that needs none from its stream.
inline const Stream kStream{nullptr, nullptr};

// Calls body() for the order of the threads and for several shuffled ones.
template <class Body>
void for_each_schedule(const Body& body) {
  const simt::Settings before = simt::settings();
  for (const uint64_t seed : {0, 1, 2, 3, 17, 123456789}) {
    simt::settings().seed = seed;
    body();
  }
  simt::settings() = before;
}

// What the launch throws; empty where it does not.
template <class... Parameters, class... Arguments>
std::string report(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, Arguments... arguments) {
  try {
    launch("planted", kernel, blocks, threads, shared, kStream, arguments...);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  std::printf("expected '%s' in '%s'\n", part.c_str(), text.c_str());
  return false;
}

// "planted_bugs.cu:12"
inline std::string line(int number, int offset = 0) { return ".cu:" + std::to_string(number + offset); }

}  // namespace evoworld::testing
