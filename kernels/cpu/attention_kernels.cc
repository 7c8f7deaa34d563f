// Compiled once per instruction set.
#include "kernels/cpu/attention_kernels.h"

#include <math.h>

#include "kernels/cpu/simd/f32x16.h"
#include "kernels/cpu/simd/math.h"

namespace sluice {
namespace SLUICE_SIMD {
namespace {

// Tiles that keep their sums in registers: an AVX2 vector of 16 lanes takes two of its 16.
#if defined(__AVX512F__)
constexpr int kDotRowsA = 4, kDotRowsB = 4, kDotRowsBOfOne = 8;
constexpr int kAccumulateRows = 4, kAccumulateVectors = 4, kAccumulateVectorsOfOne = 8;
#else
constexpr int kDotRowsA = 2, kDotRowsB = 2, kDotRowsBOfOne = 4;
constexpr int kAccumulateRows = 2, kAccumulateVectors = 2, kAccumulateVectorsOfOne = 4;
#endif

template <int kA, int kB>
void StoreSums(const F32x16 (&sums)[kA][kB], float* out, int64_t stride_out) {
  for (int i = 0; i < kA; ++i) {
    for (int j = 0; j < kB; ++j) out[i * stride_out + j] = Sum(sums[i][j]);
  }
}

#if defined(__AVX512F__)
// The same additions as Sum(), for 16 vectors side by side.
void StoreSums(const F32x16 (&sums)[4][4], float* out, int64_t stride_out) {
  __m512 quarters[4];  // lane 4 j + l: what is left of sums[i][j] after lanes 8 and 4 apart
  for (int i = 0; i < 4; ++i) {
    __m512 halves[2];
    for (int j = 0; j < 2; ++j) {
      const __m512 a = sums[i][2 * j].v, b = sums[i][2 * j + 1].v;
      halves[j] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                                _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
  }
  __m512 pairs[2];
  for (int i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(quarters[2 * i]);
    const __m512d b = _mm512_castps_pd(quarters[2 * i + 1]);
    pairs[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  // Lane 4 j + i is the sum of sums[i][j].
  const __m512 turned = _mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88),
                                      _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512 rows = _mm512_permutexvar_ps(order, turned);
  _mm_storeu_ps(out, _mm512_castps512_ps128(rows));
  _mm_storeu_ps(out + stride_out, _mm512_extractf32x4_ps(rows, 1));
  _mm_storeu_ps(out + 2 * stride_out, _mm512_extractf32x4_ps(rows, 2));
  _mm_storeu_ps(out + 3 * stride_out, _mm512_extractf32x4_ps(rows, 3));
}
#endif

template <int kA, int kB>
void DotTile(const float* a, int64_t stride_a, const float* b, int64_t stride_b, int64_t n,
             float* out, int64_t stride_out) {
  F32x16 sums[kA][kB];
  for (int i = 0; i < kA; ++i) {
    for (int j = 0; j < kB; ++j) sums[i][j] = Zero();
  }
  int64_t c = 0;
  for (; c + 16 <= n; c += 16) {
    F32x16 va[kA];
    for (int i = 0; i < kA; ++i) va[i] = Load(a + i * stride_a + c);
    for (int j = 0; j < kB; ++j) {
      const F32x16 vb = Load(b + j * stride_b + c);
      for (int i = 0; i < kA; ++i) sums[i][j] = MulAdd(va[i], vb, sums[i][j]);
    }
  }
  if (const int left = (int)(n - c); left > 0) {
    for (int i = 0; i < kA; ++i) {
      for (int j = 0; j < kB; ++j) {
        sums[i][j] = MulAdd(LoadN(a + i * stride_a + c, left), LoadN(b + j * stride_b + c, left),
                            sums[i][j]);
      }
    }
  }
  StoreSums(sums, out, stride_out);
}

// All rows of a with kB rows of b, which stay in the first cache.
template <int kB, int kBOfOne>
void DotColumns(const float* a, int64_t stride_a, int64_t rows_a, const float* b, int64_t stride_b,
                int64_t n, float* out, int64_t stride_out) {
  int64_t i = 0;
  for (; i + kDotRowsA <= rows_a; i += kDotRowsA) {
    for (int j = 0; j < kBOfOne; j += kB) {
      DotTile<kDotRowsA, kB>(a + i * stride_a, stride_a, b + j * stride_b, stride_b, n,
                             out + i * stride_out + j, stride_out);
    }
  }
  for (; i < rows_a; ++i) {
    DotTile<1, kBOfOne>(a + i * stride_a, stride_a, b, stride_b, n, out + i * stride_out,
                        stride_out);
  }
}

void DotRows(const float* a, int64_t stride_a, int64_t rows_a, const float* b, int64_t stride_b,
             int64_t rows_b, int64_t n, float* out, int64_t stride_out) {
  int64_t j = 0;
  for (; j + kDotRowsBOfOne <= rows_b; j += kDotRowsBOfOne) {
    DotColumns<kDotRowsB, kDotRowsBOfOne>(a, stride_a, rows_a, b + j * stride_b, stride_b, n,
                                          out + j, stride_out);
  }
  for (; j < rows_b; ++j) {
    DotColumns<1, 1>(a, stride_a, rows_a, b + j * stride_b, stride_b, n, out + j, stride_out);
  }
}

template <int kRows, int kVectors>
void AccumulateTile(const float* w, int64_t stride_w, const float* b, int64_t stride_b,
                    int64_t rows_b, float* out, int64_t stride_out) {
  F32x16 sums[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) sums[i][v] = Load(out + i * stride_out + 16 * v);
  }
  for (int64_t r = 0; r < rows_b; ++r) {
    F32x16 vb[kVectors];
    for (int v = 0; v < kVectors; ++v) vb[v] = Load(b + r * stride_b + 16 * v);
    for (int i = 0; i < kRows; ++i) {
      const F32x16 factor = Set1(w[i * stride_w + r]);
      for (int v = 0; v < kVectors; ++v) sums[i][v] = MulAdd(factor, vb[v], sums[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) Store(out + i * stride_out + 16 * v, sums[i][v]);
  }
}

// All rows of w with 16 kVectorsOfOne columns of b, which stay in the first cache.
template <int kVectors, int kVectorsOfOne>
void AccumulateColumns(const float* w, int64_t stride_w, int64_t rows_w, const float* b,
                       int64_t stride_b, int64_t rows_b, float* out, int64_t stride_out) {
  int64_t i = 0;
  for (; i + kAccumulateRows <= rows_w; i += kAccumulateRows) {
    for (int c = 0; c < 16 * kVectorsOfOne; c += 16 * kVectors) {
      AccumulateTile<kAccumulateRows, kVectors>(w + i * stride_w, stride_w, b + c, stride_b, rows_b,
                                                out + i * stride_out + c, stride_out);
    }
  }
  for (; i < rows_w; ++i) {
    AccumulateTile<1, kVectorsOfOne>(w + i * stride_w, stride_w, b, stride_b, rows_b,
                                     out + i * stride_out, stride_out);
  }
}

void AccumulateRows(const float* w, int64_t stride_w, int64_t rows_w, const float* b,
                    int64_t stride_b, int64_t rows_b, int64_t n, float* out, int64_t stride_out) {
  constexpr int kWidth = 16 * kAccumulateVectorsOfOne;
  int64_t c = 0;
  for (; c + kWidth <= n; c += kWidth) {
    AccumulateColumns<kAccumulateVectors, kAccumulateVectorsOfOne>(
        w, stride_w, rows_w, b + c, stride_b, rows_b, out + c, stride_out);
  }
  for (; c + 16 <= n; c += 16) {
    AccumulateColumns<1, 1>(w, stride_w, rows_w, b + c, stride_b, rows_b, out + c, stride_out);
  }
  if (const int left = (int)(n - c); left > 0) {
    for (int64_t i = 0; i < rows_w; ++i) {
      F32x16 sum = LoadN(out + i * stride_out + c, left);
      for (int64_t r = 0; r < rows_b; ++r) {
        sum = MulAdd(Set1(w[i * stride_w + r]), LoadN(b + r * stride_b + c, left), sum);
      }
      StoreN(out + i * stride_out + c, sum, left);
    }
  }
}

float SoftmaxPage(float* scores, int count, float scale, float* largest, float* sum) {
  F32x16 page[4];
  F32x16 max = Set1(*largest);
  for (int v = 0; v < 4; ++v) {
    const int lanes = count - 16 * v < 0 ? 0 : count - 16 * v > 16 ? 16 : count - 16 * v;
    page[v] = Select(FirstN(lanes), LoadN(scores + 16 * v, lanes) * Set1(scale), Set1(-INFINITY));
    max = Max(page[v], max);
  }
  const float new_largest = HMax(max);
  const F32x16 shift = Set1(new_largest);
  for (int v = 0; v < 4; ++v) {
    page[v] = Exp(page[v] - shift);
    Store(scores + 16 * v, page[v]);
  }
  const float shrink = HMax(Exp(Set1(*largest) - shift));
  *largest = new_largest;
  *sum = *sum * shrink + Sum((page[0] + page[1]) + (page[2] + page[3]));
  return shrink;
}

void Scale(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

}  // namespace

const AttentionKernels& GetAttentionKernels() {
  static constexpr AttentionKernels kKernels = {DotRows, AccumulateRows, SoftmaxPage, Scale};
  return kKernels;
}

}  // namespace SLUICE_SIMD
}  // namespace sluice
