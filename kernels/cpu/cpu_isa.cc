#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu/cpu_backend.h"

namespace sluice {
namespace {

#if defined(__x86_64__)
struct CpuidRegisters {
  uint32_t a, b, c, d;
};

CpuidRegisters Cpuid(uint32_t leaf) {
  CpuidRegisters r{leaf, 0, 0, 0};
  __asm__ volatile("cpuid" : "+a"(r.a), "=b"(r.b), "+c"(r.c), "=d"(r.d));
  return r;
}

// Not among the names that every compiler's __builtin_cpu_supports knows.
bool HasF16c() { return (Cpuid(1).c & (1u << 29)) != 0; }

bool HasAmxBf16() {
  constexpr uint32_t kNeeded = (1u << 22) | (1u << 24);  // AMX-BF16, AMX-TILE
  if ((Cpuid(7).d & kNeeded) != kNeeded) return false;
  // The kernel gives a process the tile state only when asked (ARCH_REQ_XCOMP_PERM, component 18).
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

}  // namespace

CpuIsa DetectCpuIsa() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !HasF16c()) {
    return CpuIsa::kGeneric;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return CpuIsa::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi") ||
      !__builtin_cpu_supports("gfni")) {
    return CpuIsa::kAvx512;
  }
  static const bool amx = HasAmxBf16();
  return amx ? CpuIsa::kAmx : CpuIsa::kAvx512Bf16;
#else
  return CpuIsa::kGeneric;
#endif
}

}  // namespace sluice
