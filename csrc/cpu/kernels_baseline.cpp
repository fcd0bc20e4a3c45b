#define ALA_ISA isa_baseline
#define ALA_KERNELS kKernelsBaseline
#if defined(__aarch64__)
#define ALA_ISA_NAME "neon"
#else
#define ALA_ISA_NAME "baseline"
#endif
#include "cpu/kernels.inc"
