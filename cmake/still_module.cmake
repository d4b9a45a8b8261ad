# still_module(NAME LIBS ...): library still_NAME from src/NAME/**/*.cc, test NAME_test from *_test.cc,
# benchmark NAME_bench from *_bench.cc. Other modules are named without their prefix.

set(STILL_MODULES base tensor quant kernels ops files text dist models plan hub engine grade grammar compress train eval knowledge serve cli)

function(still_flags target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Werror -Wno-missing-field-initializers)
  # g++ 12 reports false positives inside the AVX-512 intrinsic headers and std::string concatenation at -O2.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized -Wno-restrict)
  else()
    # clang reports libstdc++ 12's own use of std::get_temporary_buffer inside std::stable_sort.
    target_compile_options(${target} PRIVATE -Wno-deprecated-declarations)
  endif()
  # Kernels state their own fused operations; the compiler must not add others (docs/arithmetic.md).
  target_compile_options(${target} PRIVATE -ffp-contract=off)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_compile_definitions(${target} PRIVATE STILL_VERSION="${PROJECT_VERSION}")
  if(STILL_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${STILL_SANITIZE} -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=${STILL_SANITIZE})
  endif()
endfunction()

# Only these files may be compiled for an instruction set above the x86-64 baseline.
# Never with sanitizers: a register-blocked kernel takes minutes to compile with them; kernel tests use guard pages.
set(STILL_ISA_FLAGS_common -O2 -fno-sanitize=all)
set(STILL_ISA_FLAGS_avx2 ${STILL_ISA_FLAGS_common} -mavx2 -mfma -mf16c)
set(STILL_ISA_FLAGS_avx512 ${STILL_ISA_FLAGS_common} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512)
set(STILL_ISA_FLAGS_avx512_vnni ${STILL_ISA_FLAGS_avx512} -mavx512vnni)
set(STILL_ISA_FLAGS_amx ${STILL_ISA_FLAGS_avx512_vnni} -mamx-tile -mamx-int8)
set(STILL_ISA_FLAGS_amx_bf16 ${STILL_ISA_FLAGS_amx} -mamx-bf16 -mavx512bf16)

# The kernels of the instruction sets, a library of their own: they are the same code in all builds, and a quarter of
# one's time. STILL_ISA_LIBRARY names the libstill_isa.a of another build of the same sources, to be linked instead.
set(STILL_ISA_LIBRARY "" CACHE FILEPATH "libstill_isa.a of another build")
function(still_isa_library)
  if(STILL_ISA_LIBRARY)
    add_library(still_isa STATIC IMPORTED GLOBAL)
    set_target_properties(still_isa PROPERTIES IMPORTED_LOCATION ${STILL_ISA_LIBRARY})
  else()
    add_library(still_isa STATIC ${ARGN})
    still_flags(still_isa)
  endif()
endfunction()

# Nothing in these modules is worth -O3 (their hot loops are in others), which takes half as long again to compile.
set(STILL_COLD_MODULES plan hub grammar serve cli)
set(STILL_WARM_MODULES ops files text models engine)

# Several files of these modules are compiled as one, which saves 40 to 50 % of their time: headers and templates that
# they share are read and made once. So names in anonymous namespaces are unique within a module. Off: each file by
# itself, as clang-tidy wants them.
option(STILL_UNITY "Compile several files of a module as one" ON)
function(still_unity target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ${STILL_UNITY} UNITY_BUILD_BATCH_SIZE 6)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # A file that is included is no header.
    target_compile_options(${target} PRIVATE -Wno-subobject-linkage)
  endif()
endfunction()

# Precompiled headers, made once for all targets of the same flags: most of what each of their files has to read. Never
# for kernels: see HACKING.md on weak symbols.
function(still_precompiled_headers target from)
  target_precompile_headers(${target} REUSE_FROM ${from})
  still_precompiled_flags(${target})
endfunction()

function(still_precompiled_flags target)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # For ccache; and g++ 12 forgets that precompiled headers are the system's: it reports std::string's own bounds.
    target_compile_options(${target} PRIVATE -fpch-preprocess -Wno-stringop-overflow -Wno-stringop-overread -Wno-array-bounds)
  endif()
endfunction()

# still_headers(NAME OPTIONS <compile options> HEADERS <...> LIBS <...>)
function(still_headers name)
  cmake_parse_arguments(ARG "" "" "OPTIONS;HEADERS;LIBS;DEFINITIONS" ${ARGN})
  file(WRITE ${PROJECT_BINARY_DIR}/generated/${name}.cc "")
  add_library(${name} OBJECT ${PROJECT_BINARY_DIR}/generated/${name}.cc)
  still_flags(${name})
  target_compile_options(${name} PRIVATE ${ARG_OPTIONS})
  target_compile_definitions(${name} PRIVATE ${ARG_DEFINITIONS})
  target_link_libraries(${name} PRIVATE fmt::fmt spdlog::spdlog ${ARG_LIBS})
  target_precompile_headers(${name} PRIVATE ${ARG_HEADERS})
  still_precompiled_flags(${name})
endfunction()

set(STILL_COMMON_HEADERS <fmt/format.h> <tl/expected.hpp> <algorithm> <chrono> <cmath> <filesystem> <functional> <map> <memory>
    <optional> <span> <string> <variant> <vector>)
set(STILL_TEST_OPTIONS $<$<CONFIG:Release>:-O1> $<$<CONFIG:RelWithDebInfo>:-O0>)
set(STILL_TEST_DEFINITIONS STILL_SOURCE_DIR="${PROJECT_SOURCE_DIR}")

# What the modules below are compiled with; called once, after the packages are found.
function(still_all_headers)
  still_headers(still_cold_headers OPTIONS $<$<CONFIG:Release>:-O1> HEADERS <boost/json.hpp> ${STILL_COMMON_HEADERS})
  still_headers(still_warm_headers HEADERS ${STILL_COMMON_HEADERS})
  if(STILL_TESTS)
    still_headers(still_test_headers OPTIONS ${STILL_TEST_OPTIONS} DEFINITIONS ${STILL_TEST_DEFINITIONS}
                  HEADERS <gtest/gtest.h> <gmock/gmock.h> ${STILL_COMMON_HEADERS} LIBS GTest::gtest GTest::gmock)
  endif()
endfunction()

function(still_module name)
  cmake_parse_arguments(ARG "" "" "LIBS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cc)
  set(lib_sources)
  set(test_sources)
  set(bench_sources)
  set(isa_sources)
  foreach(source IN LISTS sources)
    if(source MATCHES "_test\\.cc$")
      list(APPEND test_sources ${source})
    elseif(source MATCHES "_bench\\.cc$")
      list(APPEND bench_sources ${source})
    elseif(source MATCHES "/kernels/cpu/[a-z0-9_]+/")
      list(APPEND isa_sources ${source})
    elseif(NOT source MATCHES "/cli/main\\.cc$")
      list(APPEND lib_sources ${source})
    endif()
    foreach(isa avx2 avx512 avx512_vnni amx amx_bf16)
      if(source MATCHES "/kernels/cpu/${isa}/")
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${STILL_ISA_FLAGS_${isa}}" SKIP_PRECOMPILE_HEADERS ON)
      endif()
    endforeach()
  endforeach()

  set(libs)
  foreach(lib IN LISTS ARG_LIBS)
    if(lib IN_LIST STILL_MODULES)
      list(APPEND libs still_${lib})
    else()
      list(APPEND libs ${lib})
    endif()
  endforeach()

  if(isa_sources)
    still_isa_library(${isa_sources})
    list(APPEND libs still_isa)
  endif()

  if(lib_sources)
    add_library(still_${name} STATIC ${lib_sources})
    still_flags(still_${name})
    if(name IN_LIST STILL_COLD_MODULES)
      target_compile_options(still_${name} PRIVATE $<$<CONFIG:Release>:-O1>)
      still_precompiled_headers(still_${name} still_cold_headers)
      still_unity(still_${name})
    elseif(name IN_LIST STILL_WARM_MODULES)
      still_precompiled_headers(still_${name} still_warm_headers)
      still_unity(still_${name})
    endif()
    target_link_libraries(still_${name} PUBLIC ${libs})
  else()
    add_library(still_${name} INTERFACE)
    target_link_libraries(still_${name} INTERFACE ${libs})
  endif()

  if(STILL_TESTS AND test_sources)
    add_executable(${name}_test ${test_sources})
    still_flags(${name}_test)
    target_compile_options(${name}_test PRIVATE ${STILL_TEST_OPTIONS})
    target_compile_definitions(${name}_test PRIVATE ${STILL_TEST_DEFINITIONS})
    still_precompiled_headers(${name}_test still_test_headers)
    target_link_libraries(${name}_test PRIVATE still_${name} GTest::gtest GTest::gmock GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name}_test)
    set_tests_properties(${name} PROPERTIES TIMEOUT 600)
  endif()
  if(STILL_BENCH AND bench_sources)
    add_executable(${name}_bench ${bench_sources})
    still_flags(${name}_bench)
    target_compile_definitions(${name}_bench PRIVATE STILL_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    target_link_libraries(${name}_bench PRIVATE still_${name} benchmark::benchmark benchmark::benchmark_main)
  endif()
endfunction()
