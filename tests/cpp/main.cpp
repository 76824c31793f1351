#include <string>

#include "check.h"

// Runs the tests whose name contains one of the arguments; without arguments all.
int main(int count, char** words) {
  int run = 0, failed = 0;
  for (const auto& test : evoworld::testing::tests()) {
    bool chosen = count == 1;
    for (int i = 1; i < count; ++i) chosen = chosen || std::string(test.name).find(words[i]) != std::string::npos;
    if (!chosen) continue;
    evoworld::testing::failures() = 0;
    test.body();
    const bool passed = evoworld::testing::failures() == 0;
    std::printf("%s %s\n", passed ? "passed" : "FAILED", test.name);
    ++run;
    failed += !passed;
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return failed != 0;
}
