// A test is TEST(name) { ... CHECK(condition) ... }; main.cpp runs all of them and counts the failures.
#pragma once

#include <cstdio>
#include <vector>

namespace evoworld::testing {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

}  // namespace evoworld::testing

#define TEST(name)                                                              \
  static void test_##name();                                                    \
  static const evoworld::testing::Register register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(...)                                                                \
  do {                                                                            \
    if (!(__VA_ARGS__)) {                                                         \
      std::printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #__VA_ARGS__); \
      ++evoworld::testing::failures();                                            \
    }                                                                             \
  } while (false)
