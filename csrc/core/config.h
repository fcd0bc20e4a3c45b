// What every core header needs: the host/device keyword and the namespace of the instruction set.
#pragma once

#if defined(__CUDACC__)
#define ALA_HD __host__ __device__ __forceinline__
#else
#define ALA_HD inline __attribute__((always_inline))
#endif

// Each translation unit is compiled for one instruction set and keeps its code in a namespace of that name,
// so the linker never merges a template compiled for a newer CPU into code that must run on an older one.
#ifndef ALA_ISA
#define ALA_ISA portable
#endif
