// Vectors of 16 lanes with the same results, bit for bit, on every instruction set (NaN payloads
// excepted).
//
// Kernels are written once over these types in a file that is compiled once per instruction set
// (sluice_isa_kernels in kernels/cpu/CMakeLists.txt). Everything in such a file stays inside
//   namespace sluice { namespace SLUICE_SIMD { ... } }
// and is reached through a table of function pointers (kernels/cpu/simd/dispatch.h). Code compiled
// with wider instructions must never be merged with baseline code by the linker, so such files
// neither call nor instantiate inline functions of other headers (no <algorithm>, no <vector>, no
// std::min, no member functions of tensor views): plain pointers and integers only. The tests
// called …_symbols_test look for offenders.
//
// F32x16, I32x16 and Mask16 are values; all functions are free functions:
//   Zero() Set1(x) Load(p) LoadN(p, n) Store(p, v) StoreN(p, v, n)      no alignment needed; n in
//       [0, 16]; lanes from n on read as 0 and are not written, and their memory is not touched
//   LoadBf16 LoadF16 LoadF8 (p) and …N(p, n)   widen exactly; LoadF8 reads OCP e4m3fn
//   StoreBf16(p, v) StoreBf16N(p, v, n)        rounds to nearest even
//   a + b, a - b, a * b, a / b, Sqrt(a), Neg(a), Abs(a)
//   MulAdd(a, b, c) = a b + c, NegMulAdd(a, b, c) = c - a b             fused: one rounding
//   Max(a, b) = a > b ? a : b, Min(a, b) = a < b ? a : b                so b if either is a NaN
//   Lt Le Gt Ge Eq (a, b) -> Mask16, false for NaN; FirstN(n), And, Or, Not, Any, Bits (lane 0 is
//       bit 0); Select(mask, a, b) = mask ? a : b
//   Sum(a), HMax(a), HMin(a): lanes i and i + 8, then i + 4, i + 2, i + 1
//   SumEach(v[16]): lane i is Sum(v[i])
//   I32x16: Set1I LoadI LoadIN StoreI StoreIN, a + b, a - b, a * b (low half), a & b, a | b, a ^ b,
//       ShiftLeft<n> ShiftRight<n> (arithmetic) ShiftRightLogical<n>, EqI GtI (signed), SelectI
//   ToI32(f): nearest even, INT32_MIN when out of range or NaN; ToF32(i): nearest even
//   BitsOf(f) -> I32x16, FromBits(i) -> F32x16
// kernels/cpu/simd/math.h adds Exp, Log, Sigmoid, Silu.
//
// Blocks of vectors that are to stay in registers are passed by reference to functions marked
// SLUICE_SIMD_INLINE, which work on local copies.
#pragma once

#define SLUICE_SIMD_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define SLUICE_SIMD simd_avx512
#include "kernels/cpu/simd/f32x16_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SLUICE_SIMD simd_avx2
#include "kernels/cpu/simd/f32x16_avx2.h"
#else
#define SLUICE_SIMD simd_generic
#include "kernels/cpu/simd/f32x16_generic.h"
#endif
