#include "check.h"

int main() {
  int failed = 0;
  for (const auto& test : evoworld::testing::tests()) {
    evoworld::testing::failures() = 0;
    test.body();
    const bool passed = evoworld::testing::failures() == 0;
    std::printf("%s %s\n", passed ? "passed" : "FAILED", test.name);
    failed += !passed;
  }
  std::printf("%zu tests, %d failed\n", evoworld::testing::tests().size(), failed);
  return failed != 0;
}
