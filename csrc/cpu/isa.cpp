#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(ALA_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ala {
namespace {

struct Choice {
  const Kernels* kernels;
  char name[32];
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#if defined(ALA_HAS_AMX)
// The kernel hands out the large tile registers on request only, to the whole process.
bool has_amx() {
  constexpr unsigned kTile = 1u << 24, kBfloat16 = 1u << 22;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) && (d & kBfloat16) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

const Kernels* best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(ALA_HAS_AMX)
  if (has_amx()) return &kKernelsAmx;
#endif
  if (has_avx512()) return &kKernelsAvx512;
  if (has_avx2()) return &kKernelsAvx2;
#endif
  return &kKernelsBaseline;
}

const Kernels* forced(const char* wanted) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(ALA_HAS_AMX)
  if (std::strcmp(wanted, "amx") == 0) return has_amx() ? &kKernelsAmx : nullptr;
#endif
  if (std::strcmp(wanted, "avx512") == 0) return has_avx512() ? &kKernelsAvx512 : nullptr;
  if (std::strcmp(wanted, "avx2") == 0) return has_avx2() ? &kKernelsAvx2 : nullptr;
#endif
  return std::strcmp(wanted, "baseline") == 0 ? &kKernelsBaseline : nullptr;
}

Choice choose() {
  const char* wanted = std::getenv("ALA_METRIC_ISA");
  Choice choice{wanted && *wanted ? forced(wanted) : best(), {}};
  std::strncpy(choice.name, choice.kernels ? choice.kernels->name : wanted, sizeof choice.name - 1);
  return choice;
}

}  // namespace

const Kernels* chosen_kernels(const char** name) {
  static const Choice choice = choose();
  *name = choice.name;
  return choice.kernels;
}

}  // namespace ala
