#define ALA_ISA isa_avx512
#define ALA_KERNELS kKernelsAvx512
#define ALA_ISA_NAME "avx512"
#include "cpu/kernels.inc"
