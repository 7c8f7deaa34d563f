# The helpers every folder uses, so that one call says what a target is.
#   sluice_library(NAME sluice_x SRCS a.cc b.cc DEPS ...)   one per folder, sources listed by name
#   sluice_program(NAME x SRCS main.cc DEPS ...)            what a person runs: build/<preset>/bin/x
#   sluice_test(NAME x_test SRCS x_test.cc DEPS ... [THREADED] [GRPC] [BUNDLED])
#                                                           one per test file, run by ctest under its
#                                                           name; THREADED: run under TSan too; GRPC: not
#                                                           with sanitizers, which Debian's gRPC is not
#                                                           built for; BUNDLED: tools/bundle takes it along
#   sluice_test_program(NAME x SRCS x.cc DEPS ... [GRPC])   what script tests run
#   sluice_script_test(NAME x_test SCRIPT x_test.py [ARGS ...])
#                                                           a Python test, run from the root
#   sluice_benchmark(NAME x_bench SRCS x_bench.cc DEPS ... [BUNDLED])
#   sluice_cuda_benchmark(NAME cuda_x_bench SRCS cuda_x_bench.cc DEPS ...)
#                                                           with tests/bench/cuda_bench.h; only in CUDA
#                                                           builds; bundled
#   sluice_fuzzer(NAME x_fuzz SRCS x_fuzz.cc DEPS ... CORPUS dir)
# Each kind has a target that builds all of it (sluice_programs, sluice_tests, sluice_benchmarks,
# sluice_fuzzers), so that nobody has to build what he does not run.
include_guard()

add_custom_target(sluice_programs)
add_custom_target(sluice_tests)
add_custom_target(sluice_benchmarks)
add_custom_target(sluice_fuzzers)

add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror;-fno-strict-aliasing>")
# Parameter structs are filled by name; what is left out has its default.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wno-missing-field-initializers>)
# Products and sums are fused only where the source says so: results must not depend on the compiler's mood.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  add_compile_options(-Wthread-safety)
endif()
if(SLUICE_SANITIZE)
  add_compile_options(-fsanitize=${SLUICE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${SLUICE_SANITIZE})
endif()
if(SLUICE_BUILD_FUZZERS)
  # Coverage of the libraries too: without it a fuzzer is blind to the code it is to explore.
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
find_program(SLUICE_MOLD mold)
if(SLUICE_MOLD)
  add_link_options(-fuse-ld=mold)
endif()
find_program(SLUICE_CCACHE ccache)
if(SLUICE_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${SLUICE_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${SLUICE_CCACHE})
endif()

function(_sluice_parse)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "THREADED;GRPC;BUNDLED" "NAME;CORPUS" "SRCS;DEPS")
  if(ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "${ARG_NAME}: unknown arguments ${ARG_UNPARSED_ARGUMENTS}")
  endif()
  set(ARG_NAME ${ARG_NAME} PARENT_SCOPE)
  set(ARG_SRCS ${ARG_SRCS} PARENT_SCOPE)
  set(ARG_DEPS ${ARG_DEPS} PARENT_SCOPE)
  set(ARG_CORPUS ${ARG_CORPUS} PARENT_SCOPE)
  set(ARG_THREADED ${ARG_THREADED} PARENT_SCOPE)
  set(ARG_GRPC ${ARG_GRPC} PARENT_SCOPE)
  set(ARG_BUNDLED ${ARG_BUNDLED} PARENT_SCOPE)
endfunction()

# Makes tools/bundle take a program along. There it looks for its libraries in the folder beside its
# own, and for CUDA's where the toolkit puts them. An RPATH, not a RUNPATH: libraries need others of that
# folder, and say nothing of where.
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib:/usr/local/cuda/lib64:/usr/local/cuda-13/lib64")
function(_sluice_bundle name)
  target_link_options(${name} PRIVATE LINKER:--disable-new-dtags)
  install(TARGETS ${name} RUNTIME DESTINATION bin COMPONENT ${name})
  set_property(GLOBAL APPEND PROPERTY SLUICE_BUNDLED ${name})
endfunction()

function(sluice_library)
  _sluice_parse(${ARGN})
  if(ARG_SRCS)
    add_library(${ARG_NAME} STATIC ${ARG_SRCS})
    target_include_directories(${ARG_NAME} PUBLIC ${PROJECT_SOURCE_DIR})
    target_link_libraries(${ARG_NAME} PUBLIC ${ARG_DEPS})
  else()
    add_library(${ARG_NAME} INTERFACE)
    target_include_directories(${ARG_NAME} INTERFACE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${ARG_NAME} INTERFACE ${ARG_DEPS})
  endif()
endfunction()

# The commit, for --version: looked up in every build, linked into programs alone, so that a commit
# makes nothing else out of date.
add_custom_target(sluice_write_build_commit
  COMMAND ${CMAKE_COMMAND} -DSOURCE_DIR=${PROJECT_SOURCE_DIR} -DOUT=${PROJECT_BINARY_DIR}/build_commit.cc
          -P ${CMAKE_CURRENT_LIST_DIR}/WriteBuildCommit.cmake
  BYPRODUCTS ${PROJECT_BINARY_DIR}/build_commit.cc)
add_library(sluice_build_commit OBJECT ${PROJECT_BINARY_DIR}/build_commit.cc)
add_dependencies(sluice_build_commit sluice_write_build_commit)

function(sluice_program)
  _sluice_parse(${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} sluice_build_commit)
  add_dependencies(sluice_programs ${ARG_NAME})
  _sluice_bundle(${ARG_NAME})
endfunction()

function(sluice_test)
  if(NOT SLUICE_BUILD_TESTS)
    return()
  endif()
  _sluice_parse(${ARGN})
  if((SLUICE_SANITIZE STREQUAL "thread" AND NOT ARG_THREADED) OR (SLUICE_SANITIZE AND ARG_GRPC))
    return()
  endif()
  add_executable(${ARG_NAME} ${ARG_SRCS})
  add_dependencies(sluice_tests ${ARG_NAME})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  if(ARG_BUNDLED)
    _sluice_bundle(${ARG_NAME})
  endif()
  # Tests find their data from the root of the sources.
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set(timeout 300)
  if(SLUICE_SANITIZE)
    set(timeout 900)  # seconds; sanitized code is slow, and more so on a busy machine
  endif()
  set_tests_properties(${ARG_NAME} PROPERTIES TIMEOUT ${timeout})
  if(SLUICE_SANITIZE STREQUAL "thread")
    set_tests_properties(${ARG_NAME} PROPERTIES
      ENVIRONMENT TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp)
  endif()
endfunction()

function(sluice_test_program)
  _sluice_parse(${ARGN})
  if(NOT SLUICE_BUILD_TESTS OR (SLUICE_SANITIZE AND ARG_GRPC))
    return()
  endif()
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS})
  add_dependencies(sluice_tests ${ARG_NAME})
endfunction()

function(sluice_script_test)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "" "NAME;SCRIPT" "ARGS")
  if(NOT SLUICE_BUILD_TESTS OR SLUICE_SANITIZE)
    return()
  endif()
  add_test(NAME ${ARG_NAME}
           COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/${ARG_SCRIPT} ${ARG_ARGS}
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${ARG_NAME} PROPERTIES TIMEOUT 300)
endfunction()

function(sluice_benchmark)
  if(NOT SLUICE_BUILD_BENCHMARKS)
    return()
  endif()
  _sluice_parse(${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} benchmark::benchmark benchmark::benchmark_main)
  add_dependencies(sluice_benchmarks ${ARG_NAME})
  if(ARG_BUNDLED)
    _sluice_bundle(${ARG_NAME})
  endif()
endfunction()

function(sluice_cuda_benchmark)
  if(NOT SLUICE_BUILD_BENCHMARKS OR NOT SLUICE_CUDA)
    return()
  endif()
  _sluice_parse(${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} sluice_cuda_bench sluice_build_commit)
  add_dependencies(sluice_benchmarks ${ARG_NAME})
  _sluice_bundle(${ARG_NAME})
endfunction()

# A libFuzzer program; its kept corpus is tests/fuzz/corpus/<CORPUS>. tools/test runs all of them.
function(sluice_fuzzer)
  if(NOT SLUICE_BUILD_FUZZERS)
    return()
  endif()
  _sluice_parse(${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  add_dependencies(sluice_fuzzers ${ARG_NAME})
  target_link_options(${ARG_NAME} PRIVATE -fsanitize=fuzzer)
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS})
  set_property(GLOBAL APPEND PROPERTY SLUICE_FUZZERS "${ARG_NAME} tests/fuzz/corpus/${ARG_CORPUS}")
endfunction()

# To be called last: tells tools/bundle what to take along, one name a line.
function(sluice_write_bundle_list)
  get_property(names GLOBAL PROPERTY SLUICE_BUNDLED)
  list(JOIN names "\n" lines)
  file(WRITE ${PROJECT_BINARY_DIR}/bundled.txt "${lines}\n")
endfunction()

# To be called last: tells the tools which fuzz targets there are, one "name corpus" a line.
function(sluice_write_fuzzer_list)
  get_property(fuzzers GLOBAL PROPERTY SLUICE_FUZZERS)
  list(JOIN fuzzers "\n" lines)
  file(WRITE ${PROJECT_BINARY_DIR}/fuzzers.txt "${lines}\n")
endfunction()
