// Compiled once per instruction set (kernels/cpu/simd/f32x16.h), and once more with GFNI and VBMI,
// which widen FP8 weights twice as fast, to the same numbers.
#include "kernels/cpu/linear_dot.h"
#include "kernels/cpu/linear_exact.h"
#if defined(__GFNI__)
#include "kernels/cpu/simd/f8_avx512.h"
#endif

namespace sluice {
namespace SLUICE_SIMD {
namespace {

inline F32x16 WidenTo16(F32Weights, const float* p) { return Load(p); }
inline F32x16 WidenTo16(Bf16Weights, const uint16_t* p) { return LoadBf16(p); }
inline F32x16 WidenTo16(F16Weights, const uint16_t* p) { return LoadF16(p); }
inline F32x16 WidenTo16(F8Weights, const uint8_t* p) { return LoadF8(p); }
inline F32x16 WidenTo16(F32Weights, const float* p, int n) { return LoadN(p, n); }
inline F32x16 WidenTo16(Bf16Weights, const uint16_t* p, int n) { return LoadBf16N(p, n); }
inline F32x16 WidenTo16(F16Weights, const uint16_t* p, int n) { return LoadF16N(p, n); }
inline F32x16 WidenTo16(F8Weights, const uint8_t* p, int n) { return LoadF8N(p, n); }

// Lane i takes every 16th k, in order.
struct ExactArithmetic {
  // Each number of 16 lanes is one register with AVX-512, of 32, and two before, of 16.
#if defined(__AVX512F__)
  static constexpr int kTokensMax = 4;
  static constexpr int RowsAtOnce(int tokens) { return tokens == 1 ? 8 : 4; }
#else
  static constexpr int kTokensMax = 3;
  static constexpr int RowsAtOnce(int tokens) { return tokens == 1 ? 4 : 2; }
#endif
  using Panel = F32Weights;
  static constexpr int64_t kXBytes = 4;
  static const char* X(const LinearTile& tile) { return (const char*)tile.x; }
  static int64_t XStride(const LinearTile& tile) { return tile.x_stride * 4; }
  template <typename W>
  static constexpr bool kDirect = true;

  template <typename W, int kRows, int kTokens>
  static SLUICE_SIMD_INLINE void Multiply(W, const typename W::Element* w, int64_t w_stride,
                                          const char* x, int64_t x_stride, int64_t length,
                                          F32x16 (&sum)[kRows][kTokens]) {
    F32x16 local[kRows][kTokens];
    CopyBlock(sum, local);
    int64_t k = 0;
#if defined(__GFNI__)
    if constexpr (sizeof(typename W::Element) == 1) {
      for (; k + 64 <= length; k += 64) {
        for (int n = 0; n < kRows; ++n) {
          F32x16 weights[4];
          LoadF8x64(w + n * w_stride + k, weights);
          for (int i = 0; i < 4; ++i) {
            for (int t = 0; t < kTokens; ++t) {
              const F32x16 xs = Load((const float*)(x + t * x_stride) + k + i * 16);
              local[n][t] = MulAdd(weights[i], xs, local[n][t]);
            }
          }
        }
      }
    }
#endif
    for (; k + 16 <= length; k += 16) {
      F32x16 xs[kTokens];
      for (int t = 0; t < kTokens; ++t) xs[t] = Load((const float*)(x + t * x_stride) + k);
      for (int n = 0; n < kRows; ++n) {
        const F32x16 weights = WidenTo16(W{}, w + n * w_stride + k);
        for (int t = 0; t < kTokens; ++t) local[n][t] = MulAdd(weights, xs[t], local[n][t]);
      }
    }
    if (k < length) {
      const int rest = (int)(length - k);
      for (int n = 0; n < kRows; ++n) {
        const F32x16 weights = WidenTo16(W{}, w + n * w_stride + k, rest);
        for (int t = 0; t < kTokens; ++t) {
          const F32x16 xs = LoadN((const float*)(x + t * x_stride) + k, rest);
          local[n][t] = MulAdd(weights, xs, local[n][t]);
        }
      }
    }
    CopyBlock(local, sum);
  }

  template <typename W>
  static inline void Widen(W, const typename W::Element* from, int64_t length, float* to) {
    int64_t k = 0;
#if defined(__GFNI__)
    if constexpr (sizeof(typename W::Element) == 1) {
      for (; k + 64 <= length; k += 64) {
        F32x16 weights[4];
        LoadF8x64(from + k, weights);
        for (int i = 0; i < 4; ++i) Store(to + k + i * 16, weights[i]);
      }
    }
#endif
    for (; k + 16 <= length; k += 16) Store(to + k, WidenTo16(W{}, from + k));
    const int rest = (int)(length - k);
    if (rest > 0) StoreN(to + k, WidenTo16(W{}, from + k, rest), rest);
  }
};

}  // namespace

#if defined(__GFNI__)
const LinearKernels& GetGfniExactLinearKernels() {
#else
const LinearKernels& GetExactLinearKernels() {
#endif
  using Dots = DotProducts<ExactArithmetic>;
  static constexpr LinearKernels kTable{
      .rows_max = Dots::kTileRows,
      .rows_min = 16,
      .tokens_max = Dots::kTileTokens,
      .scratch_bytes = sizeof(Dots::Scratch),
      .linear = &Dots::Linear,
      .gated = &Dots::Gated,
  };
  return kTable;
}

}  // namespace SLUICE_SIMD
}  // namespace sluice
