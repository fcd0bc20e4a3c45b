# The core's C++ tests: every csrc/tests/test_*.cpp is a program that exits with 0,
# on every instruction set; 77 (skipped) where this machine lacks it.
find_package(Threads REQUIRED)
file(GLOB ALA_TEST_SOURCES CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/tests/test_*.cpp")
foreach(source IN LISTS ALA_TEST_SOURCES)
  get_filename_component(name "${source}" NAME_WE)
  add_executable(${name} "${source}")
  target_include_directories(${name} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/csrc")
  target_link_libraries(${name} PRIVATE ala_metric Threads::Threads)
  foreach(isa baseline avx2 avx512 amx)
    add_test(NAME ${name}_${isa} COMMAND ${name})
    set_tests_properties(${name}_${isa} PROPERTIES ENVIRONMENT "ALA_METRIC_ISA=${isa}" SKIP_RETURN_CODE 77)
  endforeach()
endforeach()
