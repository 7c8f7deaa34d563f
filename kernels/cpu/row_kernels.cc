// Compiled once per instruction set.
#include "kernels/cpu/row_kernels.h"

#include <math.h>

#include "kernels/base/portable_math.h"
#include "kernels/cpu/simd/f32x16.h"

namespace sluice {
namespace SLUICE_SIMD {
namespace {

void WidenBf16(const uint16_t* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, LoadBf16(x + i));
  if (i < n) StoreN(out + i, LoadBf16N(x + i, (int)(n - i)), (int)(n - i));
}

void WidenF16(const uint16_t* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, LoadF16(x + i));
  if (i < n) StoreN(out + i, LoadF16N(x + i, (int)(n - i)), (int)(n - i));
}

void WidenF8(const uint8_t* x, int64_t n, float scale, float* out) {
  const F32x16 scales = Set1(scale);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, LoadF8(x + i) * scales);
  if (i < n) StoreN(out + i, LoadF8N(x + i, (int)(n - i)) * scales, (int)(n - i));
}

void NarrowBf16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) StoreBf16(out + i, Load(x + i));
  if (i < n) StoreBf16N(out + i, LoadN(x + i, (int)(n - i)), (int)(n - i));
}

void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  F32x16 squares[4] = {Zero(), Zero(), Zero(), Zero()};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) {
      const F32x16 v = Load(x + i + 16 * j);
      squares[j] = MulAdd(v, v, squares[j]);
    }
  }
  for (; i < n; i += 16) {
    const F32x16 v = LoadN(x + i, n - i < 16 ? (int)(n - i) : 16);
    squares[0] = MulAdd(v, v, squares[0]);
  }
  const float sum = Sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
  const F32x16 factor = Set1(1.0f) / Sqrt(Set1(sum / (float)n + eps));
  i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, Load(x + i) * factor * Load(weight + i));
  if (i < n) {
    const int left = (int)(n - i);
    StoreN(out + i, LoadN(x + i, left) * factor * LoadN(weight + i, left), left);
  }
}

void Rope(const float* x, const float* cos, const float* sin, int64_t pairs, float* out) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float even = x[2 * i];
    const float odd = x[2 * i + 1];
    out[2 * i] = even * cos[i] - odd * sin[i];
    out[2 * i + 1] = even * sin[i] + odd * cos[i];
  }
}

// Whole vectors are not loaded through masks: that would wait for recent stores to reach memory.
inline F32x16 LoadSome(const float* p, int n) { return n == 16 ? Load(p) : LoadN(p, n); }

void Combine(const float* rows, int64_t stride, const int32_t* pair_rows, const float* weights,
             int64_t top_k, const float* shared, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const int left = n - i < 16 ? (int)(n - i) : 16;
    F32x16 sum = Zero();
    for (int64_t k = 0; k < top_k; ++k) {
      if (pair_rows[k] < 0) continue;
      sum = MulAdd(Set1(weights[k]), LoadSome(rows + pair_rows[k] * stride + i, left), sum);
    }
    if (shared != nullptr) sum = sum + LoadSome(shared + i, left);
    sum = LoadSome(out + i, left) + sum;
    if (left == 16) {
      Store(out + i, sum);
    } else {
      StoreN(out + i, sum, left);
    }
  }
}

void Sigmoid(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = 1.0f / (1.0f + portable::Exp(-x[i]));
}

void Softmax(const float* x, int64_t n, float* out) {
  float max = -INFINITY;
  for (int64_t i = 0; i < n; ++i) max = x[i] > max ? x[i] : max;
  for (int64_t i = 0; i < n; ++i) out[i] = portable::Exp(x[i] - max);
  F32x16 lanes = Zero();
  for (int64_t i = 0; i < n; i += 16) {
    lanes = lanes + LoadN(out + i, n - i < 16 ? (int)(n - i) : 16);
  }
  const float sum = Sum(lanes);
  for (int64_t i = 0; i < n; ++i) out[i] = out[i] / sum;
}

}  // namespace

const RowKernels& GetRowKernels() {
  static constexpr RowKernels kKernels = {WidenBf16, WidenF16, WidenF8, NarrowBf16, RmsNorm,
                                          Rope,      Combine,  Sigmoid, Softmax};
  return kKernels;
}

}  // namespace SLUICE_SIMD
}  // namespace sluice
