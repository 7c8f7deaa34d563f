#include "kernels/cpu/simd/math.h"
#include "kernels/cpu/simd/simd_probe.h"

namespace sluice {
namespace SLUICE_SIMD {
namespace {

I32x16 MaskToI32(Mask16 mask) { return SelectI(mask, Set1I(-1), Set1I(0)); }

// `expr` is over a, b, c (F32x16), ia, ib (their bits), pa (the memory of a) and n.
#define SLUICE_PROBE(name, integer, expr)                                                     \
  SimdProbe {                                                                                 \
    name, integer, [](const float* pa, const float* pb, const float* pc, int n, float* out) { \
      [[maybe_unused]] const F32x16 a = Load(pa), b = Load(pb), c = Load(pc);                 \
      [[maybe_unused]] const I32x16 ia = BitsOf(a), ib = BitsOf(b);                           \
      (void)n;                                                                                \
      expr;                                                                                   \
    }                                                                                         \
  }
#define SLUICE_FLOAT_PROBE(...) SLUICE_PROBE(#__VA_ARGS__, false, Store(out, (__VA_ARGS__)))
#define SLUICE_INT_PROBE(expr) SLUICE_PROBE(#expr, true, Store(out, FromBits(expr)))
#define SLUICE_MASK_PROBE(expr) SLUICE_PROBE(#expr, true, Store(out, FromBits(MaskToI32(expr))))

const SimdProbe kProbes[] = {
    SLUICE_FLOAT_PROBE(a + b),
    SLUICE_FLOAT_PROBE(a - b),
    SLUICE_FLOAT_PROBE(a* b),
    SLUICE_FLOAT_PROBE(a / b),
    SLUICE_FLOAT_PROBE(Sqrt(a)),
    SLUICE_FLOAT_PROBE(Neg(a)),
    SLUICE_FLOAT_PROBE(Abs(a)),
    SLUICE_FLOAT_PROBE(MulAdd(a, b, c)),
    SLUICE_FLOAT_PROBE(NegMulAdd(a, b, c)),
    SLUICE_FLOAT_PROBE(Max(a, b)),
    SLUICE_FLOAT_PROBE(Min(a, b)),
    SLUICE_FLOAT_PROBE(Select(Lt(a, b), c, b)),
    SLUICE_FLOAT_PROBE(Set1(Sum(a))),
    SLUICE_FLOAT_PROBE(SumEach({a, b, c, a + b, a + c, b + c, a - b, a - c, b - c, Neg(a), Neg(b),
                                Neg(c), a* b, a* c, b* c, a* a})),
    SLUICE_FLOAT_PROBE(Set1(HMax(a))),
    SLUICE_FLOAT_PROBE(Set1(HMin(a))),
    SLUICE_FLOAT_PROBE(LoadN(pa, n)),
    SLUICE_FLOAT_PROBE(ToF32(ia)),
    SLUICE_FLOAT_PROBE(LoadBf16((const uint16_t*)pa)),
    SLUICE_FLOAT_PROBE(LoadF16((const uint16_t*)pa)),
    SLUICE_FLOAT_PROBE(LoadF8((const uint8_t*)pa)),
    SLUICE_FLOAT_PROBE(LoadBf16N((const uint16_t*)pa, n)),
    SLUICE_FLOAT_PROBE(LoadF16N((const uint16_t*)pa, n)),
    SLUICE_FLOAT_PROBE(LoadF8N((const uint8_t*)pa, n)),
    SLUICE_FLOAT_PROBE(Exp(a)),
    SLUICE_FLOAT_PROBE(Log(a)),
    SLUICE_FLOAT_PROBE(Sigmoid(a)),
    SLUICE_FLOAT_PROBE(Silu(a)),
    SLUICE_MASK_PROBE(Lt(a, b)),
    SLUICE_MASK_PROBE(Le(a, b)),
    SLUICE_MASK_PROBE(Gt(a, b)),
    SLUICE_MASK_PROBE(Ge(a, b)),
    SLUICE_MASK_PROBE(Eq(a, b)),
    SLUICE_MASK_PROBE(FirstN(n)),
    SLUICE_MASK_PROBE(And(Lt(a, b), Not(FirstN(n)))),
    SLUICE_MASK_PROBE(Or(Lt(a, b), FirstN(n))),
    SLUICE_MASK_PROBE(EqI(ia, ib)),
    SLUICE_MASK_PROBE(GtI(ia, ib)),
    SLUICE_INT_PROBE(Set1I((int)Bits(Lt(a, b)) * 2 + Any(Lt(a, b)))),
    SLUICE_INT_PROBE(ToI32(a)),
    SLUICE_INT_PROBE(ia + ib),
    SLUICE_INT_PROBE(ia - ib),
    SLUICE_INT_PROBE(ia* ib),
    SLUICE_INT_PROBE(ia& ib),
    SLUICE_INT_PROBE(ia | ib),
    SLUICE_INT_PROBE(ia ^ ib),
    SLUICE_INT_PROBE(ShiftLeft<3>(ia)),
    SLUICE_INT_PROBE(ShiftRight<3>(ia)),
    SLUICE_INT_PROBE(ShiftRightLogical<3>(ia)),
    SLUICE_INT_PROBE(LoadIN((const int32_t*)pa, n)),
    SLUICE_PROBE("StoreN", false, StoreN(out, a, n)),
    SLUICE_PROBE("StoreIN", true, StoreIN((int32_t*)out, ia, n)),
    SLUICE_PROBE("StoreI", true, StoreI((int32_t*)out, LoadI((const int32_t*)pa))),
    SLUICE_PROBE("StoreBf16", true, StoreBf16((uint16_t*)out, a)),
    SLUICE_PROBE("StoreBf16N", true, StoreBf16N((uint16_t*)out, a, n)),
};

}  // namespace

const SimdProbes& GetSimdProbes() {
  static constexpr SimdProbes kTable{kProbes, sizeof(kProbes) / sizeof(kProbes[0])};
  return kTable;
}

}  // namespace SLUICE_SIMD
}  // namespace sluice
