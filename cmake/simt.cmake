# Tests: the CUDA kernels executed on the CPU by csrc/simt, three times over.
#
#   lib/            as they are
#   lib_sanitized/  under AddressSanitizer and UndefinedBehaviorSanitizer
#   lib_race/       under csrc/simt's race detector: the compiler plants a call at every access to memory as for
#                   ThreadSanitizer, and csrc/simt/tsan_hooks.cpp, not ThreadSanitizer, receives it
#
# Each folder gets a libevoworld_cpu.so whose ops are the CUDA kernels, and evoworld_simt_tests out of tests/cpp/simt:
#
#   cmake -GNinja -S . -B build/simt -DEVOWORLD_SIMT=ON && cmake --build build/simt
#   EVOWORLD_LIBRARY_DIR=build/simt/lib python -m pytest tests/ops
if(NOT torch_ok)
  message(FATAL_ERROR "evoworld_simt: torch ${EVOWORLD_TORCH_MINIMUM} or newer is needed")
endif()
file(GLOB simt_sources CONFIGURE_DEPENDS csrc/simt/*.cpp)
file(GLOB simt_test_sources CONFIGURE_DEPENDS tests/cpp/simt/*.cu)
set_source_files_properties(${cuda_sources} ${simt_test_sources} PROPERTIES LANGUAGE CXX) # -x c++

# -O1: half the time to compile, and most of the time to run goes into fibers. The warning is a guess.
set(simt_flags -O1 -g1 -Wno-maybe-uninitialized)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND simt_flags -mavx2 -mfma -mf16c) # fmaf is an instruction, not a call
endif()

# What the sanitizers find is found by functions rather than by code at every access, which takes far longer to compile;
# a null pointer is found by AddressSanitizer anyway.
set(sanitizer_flags -fsanitize=address,undefined -fno-sanitize-recover=all -fno-sanitize=null,object-size,vptr
                    -fno-omit-frame-pointer)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND sanitizer_flags "SHELL:--param asan-instrumentation-with-call-threshold=0")
else()
  list(APPEND sanitizer_flags "SHELL:-mllvm -asan-instrumentation-with-call-threshold=0")
endif()

function(evoworld_simt_target name)
  evoworld_cpp_target(${name})
  target_compile_definitions(${name} PRIVATE EW_CUDA EW_SIMT)
  target_compile_options(${name} PRIVATE ${simt_flags})
endfunction()

add_library(evoworld_simt_torch OBJECT ${torch_sources}) # the bindings, once for all
evoworld_simt_target(evoworld_simt_torch)
evoworld_torch_headers(evoworld_simt_torch)

# evoworld_simt_variant(name folder [RUNTIME flags...] [KERNELS flags...] [DEFINITIONS ...] [LINK flags...])
function(evoworld_simt_variant name folder)
  cmake_parse_arguments(variant "" "" "RUNTIME;KERNELS;DEFINITIONS;LINK" ${ARGN})
  add_library(${name}_runtime OBJECT ${simt_sources})
  add_library(${name}_kernels OBJECT ${cuda_sources})
  add_library(${name}_planted OBJECT ${simt_test_sources})
  foreach(target ${name}_runtime ${name}_kernels ${name}_planted)
    evoworld_simt_target(${target})
    target_compile_definitions(${target} PRIVATE ${variant_DEFINITIONS})
  endforeach()
  target_include_directories(${name}_planted PRIVATE "${CMAKE_SOURCE_DIR}/tests/cpp")
  target_compile_options(${name}_runtime PRIVATE -O2 ${variant_RUNTIME})
  target_compile_options(${name}_kernels PRIVATE ${variant_KERNELS})
  target_compile_options(${name}_planted PRIVATE ${variant_KERNELS})

  evoworld_torch_library(${name} $<TARGET_OBJECTS:evoworld_simt_torch> $<TARGET_OBJECTS:${name}_runtime>
                         $<TARGET_OBJECTS:${name}_kernels>)
  set_target_properties(${name} PROPERTIES OUTPUT_NAME evoworld_cpu LINKER_LANGUAGE CXX
                                           LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/${folder}")
  target_link_options(${name} PRIVATE ${variant_LINK})

  add_executable(${name}_tests tests/cpp/main.cpp $<TARGET_OBJECTS:${name}_runtime> $<TARGET_OBJECTS:${name}_planted>)
  evoworld_cpp_target(${name}_tests)
  target_link_libraries(${name}_tests PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  target_link_options(${name}_tests PRIVATE ${variant_LINK})
  set_target_properties(${name}_tests PROPERTIES OUTPUT_NAME evoworld_simt_tests
                                                 RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/${folder}")
endfunction()

evoworld_simt_variant(evoworld_simt lib)
evoworld_simt_variant(evoworld_simt_sanitized lib_sanitized RUNTIME ${sanitizer_flags} KERNELS ${sanitizer_flags}
                      DEFINITIONS EW_FEW_CHANNELS LINK -fsanitize=address,undefined)
evoworld_simt_variant(evoworld_simt_race lib_race KERNELS -fsanitize=thread DEFINITIONS EW_SIMT_RACE EW_FEW_CHANNELS)
