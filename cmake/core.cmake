# ala_metric: the kernels behind the C API, without torch and without Python.
include(csrc/cpu/sources.cmake)
if(ALA_SANITIZE)
  ala_make_sanitizing_cheap(${ALA_CPU_SOURCES})
endif()
include(csrc/cuda/sources.cmake)
add_library(ala_metric STATIC ${ALA_CPU_SOURCES} ${ALA_CUDA_SOURCES})
add_library(ala_metric::ala_metric ALIAS ala_metric)
target_include_directories(
  ala_metric
  PUBLIC "$<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/csrc/include>" "$<INSTALL_INTERFACE:include>"
  PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/csrc")
target_link_libraries(ala_metric PUBLIC m)
target_compile_definitions(ala_metric PRIVATE ${ALA_CPU_DEFINITIONS})
if(ALA_CUDA)
  target_link_libraries(ala_metric PUBLIC CUDA::cudart_static)
endif()
