// Chooses among the instruction sets this library was built with, and names them.

#include <cstring>

#include "abi.h"

extern "C" {

void ha_attend_baseline(const HaCall*);
#if defined(HA_HAVE_AVX2)
void ha_attend_avx2(const HaCall*);
#endif
#if defined(HA_HAVE_AVX512)
void ha_attend_avx512(const HaCall*);
#endif

typedef void (*HaAttend)(const HaCall*);

// The entry for an instruction set by name; null where it was not built or cannot run here.
HaAttend ha_find(const char* isa) {
  if (std::strcmp(isa, "baseline") == 0) return ha_attend_baseline;
#if defined(HA_HAVE_AVX2)
  if (std::strcmp(isa, "avx2") == 0 && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return ha_attend_avx2;
#endif
#if defined(HA_HAVE_AVX512)
  if (std::strcmp(isa, "avx512") == 0 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
    return ha_attend_avx512;
#endif
  return nullptr;
}

int ha_abi_version() { return 6; }
}
