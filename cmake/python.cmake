# What Python loads: operators for torch, and a module for NumPy arrays where pybind11 is present.
set(ALA_PARTS torch)

# The binding names libtorch.so as a library it needs and leaves torch's C functions open. A stub with that
# name serves the linker; at run time torch has loaded the real one. So the build needs no torch.
file(CONFIGURE OUTPUT stub.cpp CONTENT "")
add_library(torch_stub SHARED "${CMAKE_CURRENT_BINARY_DIR}/stub.cpp")
set_target_properties(torch_stub PROPERTIES OUTPUT_NAME torch LIBRARY_OUTPUT_DIRECTORY stub)

add_library(ala_metric_torch MODULE csrc/torch/binding.cpp)
target_link_libraries(ala_metric_torch PRIVATE ala_metric torch_stub)
if(ALA_CUDA)
  list(APPEND ALA_PARTS cuda)
  target_compile_definitions(ala_metric_torch PRIVATE ALA_WITH_CUDA)
endif()
if(APPLE)
  target_link_options(ala_metric_torch PRIVATE -undefined dynamic_lookup)
else()
  target_link_options(ala_metric_torch PRIVATE -Wl,--no-as-needed)
endif()
set_target_properties(ala_metric_torch PROPERTIES SUFFIX .so)
install(TARGETS ala_metric_torch LIBRARY DESTINATION . COMPONENT python)

find_package(Python COMPONENTS Interpreter Development.Module)
find_package(pybind11 CONFIG QUIET)
if(Python_Development.Module_FOUND AND pybind11_FOUND)
  list(APPEND ALA_PARTS numpy)
  pybind11_add_module(ala_metric_numpy MODULE NO_EXTRAS csrc/numpy/module.cpp)
  target_link_libraries(ala_metric_numpy PRIVATE ala_metric)
  set_target_properties(ala_metric_numpy PROPERTIES OUTPUT_NAME _numpy)
  install(TARGETS ala_metric_numpy LIBRARY DESTINATION . COMPONENT python)
else()
  message(STATUS "ala_metric: no pybind11 or no Python headers: building without the NumPy module")
endif()
