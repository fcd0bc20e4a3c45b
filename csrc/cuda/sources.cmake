# The kernels for CUDA, or their absence. Sets ALA_CUDA_SOURCES, and with ALA_CUDA the language CUDA.
set(_cuda ${CMAKE_CURRENT_LIST_DIR})
if(NOT ALA_CUDA)
  set(ALA_CUDA_SOURCES ${_cuda}/absent.cpp)
  return()
endif()

# Machine code for every architecture that a CUDA 13 compiler knows and that is in use, and PTX of the last
# one for what comes after. A GPU of the build machine is never looked at.
#   75 Turing (T4, RTX 20)     80 Ampere (A100)      86 Ampere (A10, RTX 30)   89 Ada (L4, L40, RTX 40)
#   90 Hopper (H100, H200)    100 Blackwell (B200)  120 Blackwell (RTX 50)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 100-real 120)
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(ALA_CUDA_SOURCES)
foreach(_unit IN ITEMS mixture focal distance mined ranks)
  list(APPEND ALA_CUDA_SOURCES ${_cuda}/${_unit}.cu)
endforeach()
