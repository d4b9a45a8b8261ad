# Target xgrammar: the core of xgrammar (Dong et al. 2024, arXiv:2411.15100), compiled from its published source package,
# which tools/fetch_xgrammar.sh gets into build/third_party/. Left out: the Python binding and the front ends that
# still has its own of or does not need (JSON schemas, structural tags, Lark); cmake/xgrammar_parts.cc stands in for them.
# Sets STILL_HAS_XGRAMMAR. Without the source the program is built all the same and refuses grammars in a sentence.
set(STILL_HAS_XGRAMMAR OFF)
execute_process(COMMAND ${PROJECT_SOURCE_DIR}/tools/fetch_xgrammar.sh OUTPUT_VARIABLE xgrammar_source
                OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE xgrammar_status)
if(NOT xgrammar_status EQUAL 0)
  message(WARNING "xgrammar's source is not there: this build refuses JSON schemas, grammars and forced tool calls "
                  "(`still version --verbose` says so). tools/fetch_xgrammar.sh gets it.")
  return()
endif()
set(STILL_HAS_XGRAMMAR ON)

file(GLOB xgrammar_files ${xgrammar_source}/cpp/*.cc ${xgrammar_source}/cpp/support/*.cc)
list(FILTER xgrammar_files EXCLUDE REGEX "/(json_schema_converter|structural_tag|lark_converter|testing)\\.cc$")
add_library(xgrammar STATIC ${xgrammar_files} ${PROJECT_SOURCE_DIR}/cmake/xgrammar_parts.cc)
# Few translation units: most of a file's time goes into the headers it shares with the others.
set_target_properties(xgrammar PROPERTIES CXX_STANDARD 17 UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
target_include_directories(xgrammar PRIVATE ${xgrammar_source}/cpp)
target_include_directories(xgrammar SYSTEM PUBLIC ${xgrammar_source}/include ${xgrammar_source}/3rdparty/picojson
                                                  ${xgrammar_source}/3rdparty/dlpack/include)
target_compile_definitions(xgrammar PRIVATE XGRAMMAR_ENABLE_CPPTRACE=0 XGRAMMAR_ENABLE_INTERNAL_CHECK=0
                                            XGRAMMAR_LOG_CUSTOMIZE=1 NDEBUG)
# -O1, and no sanitizers: it is another's code, and compiling it should cost little (docs/structured-output.md).
target_compile_options(xgrammar PRIVATE -w -O1)
# Time limits, which it has none of.
target_compile_options(xgrammar PRIVATE -include ${PROJECT_SOURCE_DIR}/cmake/xgrammar_hooks.h)
set_property(SOURCE ${xgrammar_files} PROPERTY OBJECT_DEPENDS "${PROJECT_SOURCE_DIR}/cmake/xgrammar_hooks.h")
target_link_libraries(xgrammar PRIVATE Threads::Threads)
