#define ALA_ISA isa_avx2
#define ALA_KERNELS kKernelsAvx2
#define ALA_ISA_NAME "avx2"
#include "cpu/kernels.inc"
