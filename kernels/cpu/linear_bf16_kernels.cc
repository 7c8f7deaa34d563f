// Compiled with AVX512-BF16, VBMI and GFNI; the rules of kernels/cpu/simd/f32x16.h apply.
#include "kernels/cpu/linear_dot.h"
#include "kernels/cpu/linear_fast.h"
#include "kernels/cpu/simd/bf16_avx512.h"

namespace sluice {
namespace simd_avx512 {
namespace {

// Lane i takes products 2 i and 2 i + 1 of every 32 k.
struct Bf16Arithmetic {
  static constexpr int kTokensMax = 4;
  static constexpr int RowsAtOnce(int tokens) { return tokens == 1 ? 8 : 4; }
  using Panel = Bf16Weights;
  static constexpr int64_t kXBytes = 2;
  static const char* X(const LinearTile& tile) { return tile.packed_x; }
  static int64_t XStride(const LinearTile& tile) { return tile.packed_group_bytes; }
  template <typename W>
  static constexpr bool kDirect = sizeof(typename W::Element) == 1;

  template <typename W, int kRows, int kTokens, typename Which>
  static SLUICE_SIMD_INLINE void Step(W, const typename W::Element* w, int64_t w_stride,
                                      const char* x, int64_t x_stride, Which which,
                                      F32x16 (&sum)[kRows][kTokens]) {
    __m512bh lo[kTokens], hi[kTokens];
    for (int t = 0; t < kTokens; ++t) {
      lo[t] = (__m512bh)_mm512_loadu_si512(x + t * x_stride);
      hi[t] = (__m512bh)_mm512_loadu_si512(x + t * x_stride + 64);
    }
    for (int n = 0; n < kRows; ++n) {
      const Bf16x64 weights = WidenTo64(W{}, w + n * w_stride, which);
      for (int t = 0; t < kTokens; ++t) {
        sum[n][t].v = _mm512_dpbf16_ps(sum[n][t].v, (__m512bh)weights.lo, lo[t]);
      }
      for (int t = 0; t < kTokens; ++t) {
        sum[n][t].v = _mm512_dpbf16_ps(sum[n][t].v, (__m512bh)weights.hi, hi[t]);
      }
    }
  }

  // The columns of x beyond length are other numbers or zeros: those of w count as zeros.
  template <typename W, int kRows, int kTokens>
  static SLUICE_SIMD_INLINE void Multiply(W, const typename W::Element* w, int64_t w_stride,
                                          const char* x, int64_t x_stride, int64_t length,
                                          F32x16 (&sum)[kRows][kTokens]) {
    F32x16 local[kRows][kTokens];
    CopyBlock(sum, local);
    int64_t k = 0;
    for (; k + 64 <= length; k += 64) {
      Step(W{}, w + k, w_stride, x + k * 2, x_stride, All64{}, local);
    }
    if (k < length) Step(W{}, w + k, w_stride, x + k * 2, x_stride, First64(length - k), local);
    CopyBlock(local, sum);
  }

  template <typename W>
  static inline void Widen(W, const typename W::Element* from, int64_t length, uint16_t* to) {
    for (int64_t k = 0; k < length; k += 64) {
      const Bf16x64 weights = WidenTo64(W{}, from + k, First64(length - k));
      _mm512_storeu_si512(to + k, weights.lo);
      _mm512_storeu_si512(to + k + 32, weights.hi);
    }
  }
};
template <>
constexpr bool Bf16Arithmetic::kDirect<Bf16Weights> = true;

// A packed token: its k values in bf16, then zeros, so that 64 may be read from any of them.
int64_t PackedBytes(const LinearTile& whole) { return ((whole.k + 63) / 64 + 1) * 128; }

void Pack(const LinearTile& whole, int64_t token, char* packed) {
  const float* x = whole.x + token * whole.x_stride;
  for (int64_t k = 0; k < whole.k + 64; k += 64) {
    const Bf16x64 rounded = WidenTo64(F32Weights{}, x + k, First64(k < whole.k ? whole.k - k : 0));
    _mm512_storeu_si512(packed + k * 2, rounded.lo);
    _mm512_storeu_si512(packed + k * 2 + 64, rounded.hi);
  }
}

}  // namespace
}  // namespace simd_avx512

const LinearKernels& GetBf16LinearKernels() {
  using Dots = simd_avx512::DotProducts<simd_avx512::Bf16Arithmetic>;
  static constexpr LinearKernels kTable{
      .rows_max = Dots::kTileRows,
      .rows_min = 16,
      .tokens_max = Dots::kTileTokens,
      .scratch_bytes = sizeof(Dots::Scratch),
      .linear = &Dots::Linear,
      .gated = &Dots::Gated,
      .pack_tokens = 1,
      .packed_bytes = &simd_avx512::PackedBytes,
      .pack = &simd_avx512::Pack,
  };
  return kTable;
}

}  // namespace sluice
