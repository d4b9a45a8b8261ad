# The CUDA side: STILL_CUDA=AUTO builds it where nvcc and the static runtime are found (and not with sanitizers), ON
# demands them, OFF links stubs with the same interface. The .cu files are compiled by plain commands, so that neither
# CMake's CUDA language nor a driver is needed; cuBLASLt is loaded at run time (src/kernels/cuda/gemm.cc).

set(STILL_CUDA AUTO CACHE STRING "CUDA: AUTO, ON or OFF")
set(STILL_CUDA_ARCHS "90a" CACHE STRING "Compute capabilities to compile for, as 80;90a")
if("90" IN_LIST STILL_CUDA_ARCHS)
  message(FATAL_ERROR "STILL_CUDA_ARCHS: Hopper's kernels want 90a, not 90")
endif()

set(STILL_HAS_CUDA OFF)
if(STILL_CUDA STREQUAL "ON" OR (STILL_CUDA STREQUAL "AUTO" AND NOT STILL_SANITIZE))
  find_program(STILL_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
  if(STILL_NVCC)
    # nvcc itself knows where its toolkit lies: "#$ TOP=..." of a dry run.
    file(WRITE ${PROJECT_BINARY_DIR}/generated/empty.cu "")
    execute_process(COMMAND ${STILL_NVCC} --dryrun -c ${PROJECT_BINARY_DIR}/generated/empty.cu -o /dev/null
                    ERROR_VARIABLE dryrun OUTPUT_QUIET)
    if(dryrun MATCHES "TOP=([^\n\r]+)")
      get_filename_component(cuda_root "${CMAKE_MATCH_1}" ABSOLUTE)
    endif()
    find_path(STILL_CUDA_INCLUDE cuda_runtime_api.h HINTS ${cuda_root}/include ${cuda_root}/targets/x86_64-linux/include
              NO_DEFAULT_PATH)
    find_library(STILL_CUDART libcudart_static.a HINTS ${cuda_root}/lib64 ${cuda_root}/lib
                 ${cuda_root}/targets/x86_64-linux/lib NO_DEFAULT_PATH)
    if(STILL_CUDA_INCLUDE AND STILL_CUDART)
      set(STILL_HAS_CUDA ON)
    endif()
  endif()
  if(STILL_CUDA STREQUAL "ON" AND NOT STILL_HAS_CUDA)
    message(FATAL_ERROR "STILL_CUDA=ON: no nvcc with cuda_runtime_api.h and libcudart_static.a found (set CUDA_HOME)")
  endif()
endif()

file(GLOB cuda_stubs CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/*/cuda/*_stub.cc)
file(GLOB cuda_hosts CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/*/cuda/*.cc)
list(REMOVE_ITEM cuda_hosts ${cuda_stubs})
if(STILL_HAS_CUDA)
  message(STATUS "CUDA: ${STILL_NVCC}, for ${STILL_CUDA_ARCHS}")
  set_source_files_properties(${cuda_stubs} PROPERTIES HEADER_FILE_ONLY ON)
  set_source_files_properties(${cuda_hosts} PROPERTIES INCLUDE_DIRECTORIES ${STILL_CUDA_INCLUDE})
else()
  message(STATUS "CUDA: not built (no nvcc with its static runtime, or STILL_CUDA=${STILL_CUDA} with sanitizers)")
  set_source_files_properties(${cuda_hosts} PROPERTIES HEADER_FILE_ONLY ON)
endif()

# Adds the .cu files of a module to its library, and the runtime it needs.
function(still_cuda_module name)
  if(NOT STILL_HAS_CUDA)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/cuda/*.cu)
  set(flags -std=c++20 -O3 -I${PROJECT_SOURCE_DIR}/src)
  foreach(arch IN LISTS STILL_CUDA_ARCHS)
    list(APPEND flags -gencode=arch=compute_${arch},code=sm_${arch})
  endforeach()
  foreach(source IN LISTS sources)
    get_filename_component(stem ${source} NAME_WE)
    set(object ${PROJECT_BINARY_DIR}/cuda/${name}_${stem}.o)
    file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/cuda)
    add_custom_command(OUTPUT ${object}
                       COMMAND ${STILL_NVCC} ${flags} -MD -MF ${object}.d -c ${source} -o ${object}
                       DEPENDS ${source} DEPFILE ${object}.d
                       COMMENT "Compiling ${source} for CUDA" VERBATIM)
    set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    target_sources(still_${name} PRIVATE ${object})
  endforeach()
  target_link_libraries(still_${name} PUBLIC ${STILL_CUDART} rt dl)
endfunction()

# Speed on a GPU with random weights: bench/gpu.cc.
function(still_gpu_bench)
  if(NOT STILL_HAS_CUDA)
    return()
  endif()
  add_executable(still_gpu_bench EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/bench/gpu.cc)
  still_flags(still_gpu_bench)
  target_link_libraries(still_gpu_bench PRIVATE still_engine)
endfunction()
