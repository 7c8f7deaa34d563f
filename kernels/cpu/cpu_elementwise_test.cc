#include <algorithm>
#include <cmath>
#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/ops_test_util.h"

namespace sluice {
namespace {

const CpuSetting kDefault = {DetectCpuIsa(), 1, Numerics::kExact};

absl::Status RunEmbed(const EmbedParams& params, const CpuSetting& setting = kDefault) {
  OpsUnderTest ops(setting);
  return MakeCpuElementwiseOps(ops.context())->Embed(params, StreamId{});
}

absl::Status RunRmsNorm(const RmsNormParams& params, const CpuSetting& setting = kDefault) {
  OpsUnderTest ops(setting);
  return MakeCpuElementwiseOps(ops.context())->RmsNorm(params, StreamId{});
}

absl::Status RunGatherRows(const GatherRowsParams& params, const CpuSetting& setting = kDefault) {
  OpsUnderTest ops(setting);
  return MakeCpuElementwiseOps(ops.context())->GatherRows(params, StreamId{});
}

TEST(Embed, WidensRowsOfEveryType) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
    for (const int64_t hidden : {1, 15, 16, 17, 128, 300}) {
      for (const int64_t offset : {0, 5}) {  // a table inside a larger matrix
        const OwnedWeight table = RandomWeight(dtype, 140, hidden, 1, 0.5f, offset);
        const OwnedTensor ids = MakeI32({4}, {139, 0, 127, 0});
        const OwnedTensor out(DType::kF32, {4, hidden});
        const OwnedTensor resolved(DType::kI32, {4});
        ASSERT_TRUE(RunEmbed({.ids = ids.view(),
                              .table = table.view,
                              .out = out.view(),
                              .resolved_ids = resolved.view()})
                        .ok());
        for (int t = 0; t < 4; ++t) {
          const int32_t id = ids.data<int32_t>()[t];
          EXPECT_EQ(resolved.data<int32_t>()[t], id);
          for (int64_t c = 0; c < hidden; ++c) {
            EXPECT_EQ(out.data<float>()[t * hidden + c],
                      static_cast<float>(table.values[id * hidden + c]));
          }
        }
        EXPECT_TRUE(out.GuardsIntact());
      }
    }
  }
}

TEST(Embed, NegativeIdsMeanTokensOfSlots) {
  const OwnedWeight table = RandomWeight(DType::kF32, 10, 4, 1, 1.0f);
  const OwnedTensor ids = MakeI32({4}, {-1, 3, -3, -1});
  const OwnedTensor slots = MakeI32({3}, {7, 99, 0});
  const OwnedTensor out(DType::kF32, {4, 4});
  const OwnedTensor resolved(DType::kI32, {4});
  ASSERT_TRUE(RunEmbed({ids.view(), slots.view(), table.view, out.view(), resolved.view()}).ok());
  const int32_t want[] = {7, 3, 0, 7};
  for (int t = 0; t < 4; ++t) {
    EXPECT_EQ(resolved.data<int32_t>()[t], want[t]);
    EXPECT_EQ(out.data<float>()[t * 4 + 3], static_cast<float>(table.values[want[t] * 4 + 3]));
  }
}

TEST(Embed, RefusesIdsOutsideTheTable) {
  const OwnedWeight table = RandomWeight(DType::kF32, 10, 4, 1, 1.0f);
  const OwnedTensor slots = MakeI32({2}, {7, 10});
  const OwnedTensor out(DType::kF32, {1, 4});
  const OwnedTensor resolved(DType::kI32, {1});
  struct Case {
    int32_t id;
    const char* want;
  };
  for (const Case& c : {Case{10, "token 10"}, Case{-2, "token 10"}, Case{-3, "slot 2"},
                        Case{INT32_MIN, "slot 2147483647"}}) {
    const OwnedTensor ids = MakeI32({1}, {c.id});
    const absl::Status status =
        RunEmbed({ids.view(), slots.view(), table.view, out.view(), resolved.view()});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(c.want));
  }
}

TEST(RmsNorm, MatchesDouble) {
  for (const int64_t width : {1, 15, 16, 17, 63, 64, 65, 256, 7168}) {
    for (const int64_t rows : {0, 1, 3}) {
      const OwnedTensor x = RandomF32({rows, width}, 3, 2.0f);
      const OwnedTensor weight = RandomF32({width}, 4, 0.2f, 1.0f);
      const OwnedTensor out(DType::kF32, {rows, width});
      ASSERT_TRUE(RunRmsNorm({x.view(), weight.view(), 1e-6f, out.view()}).ok());
      for (int64_t r = 0; r < rows; ++r) {
        double squares = 0;
        for (int64_t c = 0; c < width; ++c) squares += std::pow(x.data<float>()[r * width + c], 2);
        const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-6);
        for (int64_t c = 0; c < width; ++c) {
          const double want = x.data<float>()[r * width + c] * factor * weight.data<float>()[c];
          EXPECT_NEAR(out.data<float>()[r * width + c], want, 1e-6 * std::fabs(want));
        }
      }
      EXPECT_TRUE(out.GuardsIntact());
    }
  }
}

TEST(RmsNorm, EpsCountsForSmallRows) {
  const OwnedTensor x = MakeF32({1, 2}, {1e-3f, -1e-3f});
  const OwnedTensor weight = MakeF32({2}, {1, 1});
  const OwnedTensor out(DType::kF32, {1, 2});
  ASSERT_TRUE(RunRmsNorm({x.view(), weight.view(), 1e-6f, out.view()}).ok());
  EXPECT_NEAR(out.data<float>()[0], 1e-3 / std::sqrt(2e-6), 1e-6);
}

TEST(RmsNorm, WorksInPlaceOnRowsOfAWiderMatrixAndIsTheSameEverywhere) {
  const OwnedTensor x = RandomF32({40, 700}, 5);
  const OwnedTensor weight = RandomF32({517}, 6);
  std::vector<float> want;
  for (const CpuSetting& setting : AllSettings(Numerics::kExact)) {
    OwnedTensor copy = x;
    TensorView view(copy.data<float>(), DType::kF32, {40, 517});
    view.row_stride = 700;
    ASSERT_TRUE(RunRmsNorm({view, weight.view(), 1e-5f, view}, setting).ok());
    const std::vector<float> got(copy.data<float>(), copy.data<float>() + copy.size());
    if (want.empty()) want = got;
    EXPECT_EQ(got, want) << Name(setting);
    for (int r = 0; r < 40; ++r) {
      EXPECT_EQ(got[r * 700 + 517], x.data<float>()[r * 700 + 517]);  // beyond the row
    }
  }
}

TEST(GatherRows, CopiesRowsAndRefusesOthers) {
  const OwnedTensor x = RandomF32({5, 33}, 7);
  const OwnedTensor rows = MakeI32({4}, {4, 0, 4, 2});
  const OwnedTensor out(DType::kF32, {4, 33});
  ASSERT_TRUE(RunGatherRows({x.view(), rows.view(), out.view()}).ok());
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(std::equal(out.data<float>() + i * 33, out.data<float>() + (i + 1) * 33,
                           x.data<float>() + rows.data<int32_t>()[i] * 33));
  }
  const OwnedTensor none(DType::kI32, {0});
  const OwnedTensor empty(DType::kF32, {0, 33});
  EXPECT_TRUE(RunGatherRows({x.view(), none.view(), empty.view()}).ok());
  const OwnedTensor bad = MakeI32({4}, {0, 5, 0, 0});
  EXPECT_THAT(std::string(RunGatherRows({x.view(), bad.view(), out.view()}).message()),
              testing::HasSubstr("rows[1] is 5"));
}

// What the op should write: a number at a time, each block's scale from all of the block.
float Expected(const FillRandomParams& params, int64_t row, int64_t col, float* scale) {
  const auto number = [&](int64_t r, int64_t c) {
    return RandomNumber(params.numbers, static_cast<uint64_t>(r * params.cols + c));
  };
  const int64_t r = params.row_begin + row, c = params.col_begin + col;
  const int64_t block = params.out.scale_block;
  float amax = 0;
  for (int64_t i = r / block * block; i < std::min(r / block * block + block, params.rows); ++i) {
    for (int64_t j = c / block * block; j < std::min(c / block * block + block, params.cols); ++j) {
      amax = std::max(amax, std::fabs(number(i, j)));
    }
  }
  *scale = amax == 0 ? 1.0f : amax / 448.0f;
  return number(r, c);
}

TEST(FillRandom, WritesItsPartOfTheWholeAndNothingElse) {
  struct Case {
    int64_t rows, cols, row_begin, col_begin, out_rows, out_cols;
  };
  constexpr int64_t kBlock = 8;
  for (const Case& c :
       {Case{1, 1, 0, 0, 1, 1}, Case{20, 19, 0, 0, 20, 19}, Case{20, 19, 5, 3, 11, 14},
        Case{16, 16, 8, 8, 8, 8}, Case{16, 16, 4, 4, 0, 5}, Case{16, 16, 4, 4, 5, 0}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
      const OwnedTensor out(dtype, {c.out_rows, c.out_cols + 2});
      const OwnedTensor scales(DType::kF32, {3, 4});
      FillRandomParams params{.numbers = NormalNumbers(7, 0.5, 0.25),
                              .rows = c.rows,
                              .cols = c.cols,
                              .row_begin = c.row_begin,
                              .col_begin = c.col_begin};
      params.out = {.data = out.data<void>(),
                    .dtype = dtype,
                    .rows = c.out_rows,
                    .cols = c.out_cols,
                    .row_stride = c.out_cols + 2,
                    .scales = scales.data<float>(),
                    .scale_row_stride = 4,
                    .scale_block = kBlock,
                    .row_begin = c.row_begin % kBlock,
                    .col_begin = c.col_begin % kBlock};
      OpsUnderTest ops(kDefault);
      ASSERT_TRUE(MakeCpuElementwiseOps(ops.context())->FillRandom(params, StreamId{}).ok());
      for (int64_t row = 0; row < c.out_rows; ++row) {
        for (int64_t col = 0; col < c.out_cols + 2; ++col) {
          const int64_t at = row * (c.out_cols + 2) + col;
          if (col >= c.out_cols) {
            EXPECT_EQ(out.data<uint8_t>()[at * DTypeBytes(dtype)], 0xff);
            continue;
          }
          float scale;
          const float want = Expected(params, row, col, &scale);
          if (dtype == DType::kF32) {
            EXPECT_EQ(out.data<float>()[at], want);
          } else if (dtype == DType::kBF16) {
            EXPECT_EQ(out.data<uint16_t>()[at], F32ToBf16(want));
          } else {
            EXPECT_EQ(params.out.ScaleAt(row, col), scale);
            EXPECT_EQ(out.data<uint8_t>()[at], F32ToF8E4M3(want / scale));
          }
        }
      }
      EXPECT_TRUE(out.GuardsIntact() && scales.GuardsIntact());
    }
  }
}

TEST(FillRandom, IsNormalAndDependsOnTheKey) {
  constexpr int64_t kCount = 1 << 18;
  const OwnedTensor a(DType::kF32, {512, kCount / 512}), b(DType::kF32, {512, kCount / 512});
  OpsUnderTest ops(kDefault);
  const auto elementwise = MakeCpuElementwiseOps(ops.context());
  const auto fill = [&](const OwnedTensor& to, uint64_t key) {
    FillRandomParams params{.numbers = NormalNumbers(key, 2), .rows = 512, .cols = kCount / 512};
    params.out = {
        .data = to.data<void>(), .rows = 512, .cols = kCount / 512, .row_stride = kCount / 512};
    ASSERT_TRUE(elementwise->FillRandom(params, StreamId{}).ok());
  };
  fill(a, 1);
  fill(b, MixBits(1));
  double sum = 0, squares = 0, fourth = 0, together = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    const double x = a.data<float>()[i] / 2;
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
    together += x * b.data<float>()[i] / 2;
  }
  EXPECT_NEAR(sum / kCount, 0, 0.01);
  EXPECT_NEAR(squares / kCount, 1, 0.01);
  EXPECT_NEAR(fourth / kCount, 2.7, 0.03);  // of the sum of four; 3 of a true normal
  EXPECT_NEAR(together / kCount, 0, 0.01);
}

TEST(FillRandom, RefusesWhatDoesNotFit) {
  const OwnedTensor out(DType::kF32, {8, 8});
  const auto message = [&](const FillRandomParams& params) {
    OpsUnderTest ops(kDefault);
    return std::string(
        MakeCpuElementwiseOps(ops.context())->FillRandom(params, StreamId{}).message());
  };
  FillRandomParams params{.rows = 8, .cols = 8};
  params.out = {.data = out.data<void>(), .rows = 8, .cols = 8, .row_stride = 8};
  params.col_begin = 1;
  EXPECT_THAT(message(params), testing::HasSubstr("does not lie within [8, 8]"));
  params.col_begin = 0;
  params.out.dtype = DType::kF16;
  EXPECT_THAT(message(params), testing::HasSubstr("wanted F32, BF16 or F8_E4M3"));
  params.out.dtype = DType::kF8E4M3;
  EXPECT_THAT(message(params), testing::HasSubstr("no scales"));
  params.out.scales = out.data<float>();
  params.out.row_begin = 3;
  EXPECT_THAT(message(params), testing::HasSubstr("begins at (3, 0)"));
}

}  // namespace
}  // namespace sluice
