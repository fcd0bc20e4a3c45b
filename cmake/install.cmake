# find_package(ala_metric): headers, the static core, and the record of what was built.
include(CMakePackageConfigHelpers)
set(ALA_CMAKE_DIR lib/cmake/ala_metric)
install(TARGETS ala_metric EXPORT ala_metricTargets ARCHIVE DESTINATION lib)
install(DIRECTORY csrc/include/ DESTINATION include FILES_MATCHING PATTERN "*.h")
install(EXPORT ala_metricTargets NAMESPACE ala_metric:: DESTINATION ${ALA_CMAKE_DIR})
configure_package_config_file(cmake/ala_metricConfig.cmake.in ala_metricConfig.cmake
                              INSTALL_DESTINATION ${ALA_CMAKE_DIR})
write_basic_package_version_file(ala_metricConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/ala_metricConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/ala_metricConfigVersion.cmake" DESTINATION ${ALA_CMAKE_DIR})

list(APPEND ALA_PARTS cmake)
list(JOIN ALA_PARTS "\", \"" parts)
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/build_info.json"
     "{\"compiler\": \"${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}\", "
     "\"system\": \"${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR}\", \"parts\": [\"${parts}\"]}\n")
# setup.py puts it beside the library for torch
