# Torch-free core. Included by the top CMakeLists.txt; sets
#   ALA_CPU_SOURCES      files of the core (absolute paths)
#   ALA_CPU_DEFINITIONS  compile definitions for them
# and the per-ISA flags as source properties. Include directories: csrc/include and csrc.
# The core needs C++17, -fvisibility=hidden, and no OpenMP. It must never be built with -ffast-math.
set(_cpu ${CMAKE_CURRENT_LIST_DIR})
set(ALA_CPU_SOURCES ${_cpu}/api.cpp ${_cpu}/isa.cpp ${_cpu}/kernels_baseline.cpp)
set(ALA_CPU_DEFINITIONS ALA_METRIC_VERSION="${ALA_METRIC_VERSION}")
set_source_files_properties(${_cpu}/kernels_baseline.cpp PROPERTIES COMPILE_OPTIONS "-O3;-ffp-contract=fast;-Wno-psabi;-Wno-maybe-uninitialized")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  list(APPEND ALA_CPU_SOURCES ${_cpu}/kernels_avx2.cpp ${_cpu}/kernels_avx512.cpp)
  set_source_files_properties(${_cpu}/kernels_avx2.cpp PROPERTIES
    COMPILE_OPTIONS "-O3;-ffp-contract=fast;-Wno-psabi;-Wno-maybe-uninitialized;-mavx2;-mfma")
  set_source_files_properties(${_cpu}/kernels_avx512.cpp PROPERTIES
    COMPILE_OPTIONS "-O3;-ffp-contract=fast;-Wno-psabi;-Wno-maybe-uninitialized;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mfma;-mprefer-vector-width=512")

  # AMX where the compiler knows it
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_FLAGS "-mamx-tile -mamx-bf16")
  check_cxx_source_compiles("#include <immintrin.h>\nint main() { _tile_zero(0); _tile_dpbf16ps(0, 1, 2); _tile_release(); }" ALA_COMPILER_HAS_AMX)
  unset(CMAKE_REQUIRED_FLAGS)
  if(ALA_COMPILER_HAS_AMX AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
    list(APPEND ALA_CPU_SOURCES ${_cpu}/kernels_amx.cpp)
    list(APPEND ALA_CPU_DEFINITIONS ALA_HAS_AMX)
    set_source_files_properties(${_cpu}/kernels_amx.cpp PROPERTIES
      COMPILE_OPTIONS "-O3;-ffp-contract=fast;-Wno-psabi;-Wno-maybe-uninitialized;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mfma;-mamx-tile;-mamx-bf16;-mprefer-vector-width=512")
  endif()
endif()
