// The traps of kernels and configuration that can be asked about directly, one test each. The
// others (eps of the latent norms, shared expert, order of experts, …) show in exact_test and
// gate_test.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/base/float_convert.h"
#include "kernels/cpu/cpu_backend.h"
#include "services/model/model_config.h"
#include "services/model/rope.h"
#include "tests/conformance/harness.h"

namespace sluice::conformance {
namespace {

// What DeepSeek-V3's config.json says about attention.
model::ModelConfig V3Attention() {
  model::ModelConfig config;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.yarn = {.factor = 40, .mscale = 1, .mscale_all_dim = 1};
  return config;
}

TEST(TrapTest, SoftmaxScaleHasMscaleSquaredOnce) {
  EXPECT_NEAR(V3Attention().SoftmaxScale(), 0.1352338, 5e-8);
  model::ModelConfig plain = V3Attention();
  plain.yarn.reset();
  EXPECT_NEAR(plain.SoftmaxScale(), 1 / std::sqrt(192.0), 1e-12);
}

TEST(TrapTest, CosAndSinCarryOnlyTheRatioOfMscales) {
  EXPECT_EQ(model::MakeCosSinTable(V3Attention(), 1)[0], 1.0f);
  model::ModelConfig config = V3Attention();
  config.yarn->mscale = 0.707;
  const double ratio = (0.0707 * std::log(40.0) + 1) / (0.1 * std::log(40.0) + 1);
  EXPECT_NEAR(model::MakeCosSinTable(config, 1)[0], ratio, 1e-7);
}

// Pairs up to 10 keep their frequency, those from 23 on are stretched 40 times.
TEST(TrapTest, YarnStretchesTheSlowPairs) {
  const std::vector<float> table = model::MakeCosSinTable(V3Attention(), 2);
  const float* at_one = table.data() + 64;
  for (int i = 0; i < 32; ++i) {
    const double plain = std::pow(10000.0, -2.0 * i / 64);
    const double ramp = i <= 10 ? 0 : i >= 23 ? 1 : (i - 10) / 13.0;
    const double want = plain / 40 * ramp + plain * (1 - ramp);
    EXPECT_NEAR(std::atan2(at_one[32 + i], at_one[i]), want, 1e-6 * want + 1e-9) << "pair " << i;
  }
}

// A quarter turn of the first pair, none of the second: (1, 2, 3, 4) becomes (-2, 1, 3, 4), in the
// queries and in the cache, where the latent is normed and k_pe is not.
TEST(TrapTest, RopeTurnsInterleavedPairs) {
  auto backend = MakeCpuBackend({.threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  const MlaDims dims{.num_heads = 1, .nope_dim = 1, .rope_dim = 4, .v_dim = 1, .kv_lora_rank = 2};
  std::vector<float> q = {9, 1, 2, 3, 4};
  std::vector<float> kv = {3, 4, 1, 2, 3, 4};
  std::vector<float> norm = {1, 2};
  std::vector<float> cos_sin = {0, 1, 1, 0};
  std::vector<int32_t> zero = {0};
  std::vector<float> cache(kPageTokens * dims.kv_dim());
  const absl::Status status = (*backend)->attention().MlaCacheWrite(
      {.dims = dims,
       .q = TensorView(q.data(), DType::kF32, {1, 5}),
       .kv_a = TensorView(kv.data(), DType::kF32, {1, 6}),
       .kv_norm = TensorView(norm.data(), DType::kF32, {2}),
       .eps = 0,
       .cos_sin = TensorView(cos_sin.data(), DType::kF32, {1, 4}),
       .positions = TensorView(zero.data(), DType::kI32, {1}),
       .kv_rows = TensorView(zero.data(), DType::kI32, {1}),
       .cache = TensorView(cache.data(), DType::kF32, {1, kPageTokens, 6})},
      StreamId{});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(q, (std::vector<float>{9, -2, 1, 3, 4}));
  const float rms = std::sqrt(12.5f);
  EXPECT_NEAR(cache[0], 3 / rms, 1e-6);
  EXPECT_NEAR(cache[1], 8 / rms, 1e-6);
  EXPECT_EQ(std::vector<float>(cache.begin() + 2, cache.begin() + 6),
            (std::vector<float>{-2, 1, 3, 4}));
}

// [300, 200] in blocks of 128: the last row of blocks covers 44 rows, the last column 72. Slices
// that begin within a block keep the blocks of the whole matrix.
TEST(TrapTest, PartialScaleBlocks) {
  constexpr int64_t kRows = 300, kCols = 200, kTokens = 5;
  auto backend = MakeCpuBackend({.threads = 2});
  ASSERT_TRUE(backend.ok()) << backend.status();
  std::mt19937 random(1);
  std::vector<uint8_t> codes(kRows * kCols);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % 0x70 + random() % 2 * 0x80);
  std::vector<float> scales = {0.5f, 3.0f, 0.125f, 7.0f, 2.0f, 0.25f};  // [3, 2]
  std::vector<float> x(kTokens * kCols);
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  WeightView whole{.data = codes.data(),
                   .dtype = DType::kF8E4M3,
                   .rows = kRows,
                   .cols = kCols,
                   .row_stride = kCols};
  whole.scales = scales.data();
  whole.scale_row_stride = 2;
  struct Slice {
    int64_t row, rows, col, cols;
  };
  for (const Slice& s : {Slice{0, 300, 0, 200}, Slice{100, 180, 0, 200}, Slice{250, 50, 130, 70},
                         Slice{0, 300, 60, 140}}) {
    const WeightView w = whole.RowSlice(s.row, s.rows).ColSlice(s.col, s.cols);
    std::vector<float> got(kTokens * s.rows), want(kTokens * s.rows);
    TensorView in(x.data(), DType::kF32, {kTokens, s.cols});
    const absl::Status status = (*backend)->linear().Linear(
        {.x = in, .w = w, .out = TensorView(got.data(), DType::kF32, {kTokens, s.rows})},
        StreamId{});
    ASSERT_TRUE(status.ok()) << status;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t r = 0; r < s.rows; ++r) {
        double sum = 0;
        for (int64_t c = 0; c < s.cols; ++c) {
          const int64_t row = s.row + r, col = s.col + c;
          sum += double{F8E4M3ToF32(codes[row * kCols + col])} * scales[row / 128 * 2 + col / 128] *
                 x[t * s.cols + c];
        }
        want[t * s.rows + r] = static_cast<float>(sum);
      }
    }
    EXPECT_LT(RelativeError(got, want), 1e-5)
        << "rows from " << s.row << ", columns from " << s.col;
  }
}

}  // namespace
}  // namespace sluice::conformance
