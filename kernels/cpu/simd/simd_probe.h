// What simd_test runs on every instruction set: each probe turns three vectors into one.
#pragma once

#include <stdint.h>

#include "kernels/cpu/simd/dispatch.h"

namespace sluice {

struct SimdProbe {
  const char* name;
  bool integer;  // the results are integers (no bit pattern is a NaN)
  // a, b, c: 16 lanes each. n: the length of partial loads and stores. out: 16 words, poisoned.
  void (*run)(const float* a, const float* b, const float* c, int n, float* out);
};

struct SimdProbes {
  const SimdProbe* probes;
  int count;
};

SLUICE_DECLARE_KERNELS(SimdProbes, GetSimdProbes);

}  // namespace sluice
