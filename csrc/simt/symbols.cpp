// Asks addr2line, which comes with the compiler, where a line is wanted: once, when there is a race to report.
#include "simt/symbols.h"

#ifdef EW_SIMT_RACE

#include <dlfcn.h>
#include <elf.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "simt/block.h"

namespace evoworld::simt {
namespace {

struct Module {
  const char* file;
  uintptr_t base;
  bool moves;  // loaded at an address that the file does not know
};

const Module& module() {
  static const Module here = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&code_number), &info);
    const auto* header = static_cast<const Elf64_Ehdr*>(info.dli_fbase);
    return Module{info.dli_fname, reinterpret_cast<uintptr_t>(info.dli_fbase), header->e_type == ET_DYN};
  }();
  return here;
}

}  // namespace

uint32_t code_number(const void* return_address) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(return_address) - 1 - module().base);  // within the call
}

std::string place_of_code(uint32_t number) {
  const uintptr_t address = number + (module().moves ? 0 : module().base);
  const std::string command =
      format("addr2line -i -e '%s' 0x%zx 2> /dev/null", module().file, static_cast<size_t>(address));
  std::vector<std::string> places;  // innermost first
  if (FILE* lines = popen(command.c_str(), "r")) {
    char line[1024];
    while (fgets(line, sizeof line, lines) != nullptr) {
      line[strcspn(line, " \n")] = '\0';  // "file:12 (discriminator 3)"
      if (line[0] != '?' && strstr(line, "csrc/simt/") == nullptr) places.push_back(line);
    }
    pclose(lines);
  }
  if (places.empty()) return format("%s+0x%zx", module().file, static_cast<size_t>(address));
  return places.size() == 1 ? places[0] : places[0] + " (in " + places.back() + ")";
}

}  // namespace evoworld::simt

#endif
