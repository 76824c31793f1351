// From instructions to the lines of source they were made of, for the race detector's messages.
#pragma once

#include <cstdint>
#include <string>

namespace evoworld::simt {

// A number for an instruction of this library or program: short enough to keep for each access.
uint32_t code_number(const void* return_address);
// "file:line", of the file outside of csrc/simt if there is one; where that was inlined, also where it was called.
std::string place_of_code(uint32_t number);

}  // namespace evoworld::simt
