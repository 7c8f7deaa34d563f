// Choosing the variant of a kernel table for an instruction set.
//
// x_kernels.cc, compiled once per instruction set, defines in its namespace
//   const XKernels& GetXKernels();
// and the baseline code that uses them declares all three and chooses when it is built:
//   SLUICE_DECLARE_KERNELS(XKernels, GetXKernels);
//   const XKernels& kernels = SLUICE_CHOOSE_KERNELS(context.isa, GetXKernels);
#pragma once

#include "kernels/cpu/cpu_backend.h"

// Inside namespace sluice.
#define SLUICE_DECLARE_KERNELS(Table, Getter) \
  namespace simd_generic {                    \
  const Table& Getter();                      \
  }                                           \
  namespace simd_avx2 {                       \
  const Table& Getter();                      \
  }                                           \
  namespace simd_avx512 {                     \
  const Table& Getter();                      \
  }                                           \
  static_assert(true)

#define SLUICE_CHOOSE_KERNELS(isa, Getter)                              \
  ((isa) >= ::sluice::CpuIsa::kAvx512 ? ::sluice::simd_avx512::Getter() \
   : (isa) >= ::sluice::CpuIsa::kAvx2 ? ::sluice::simd_avx2::Getter()   \
                                      : ::sluice::simd_generic::Getter())
