#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/linear_testing.h"

namespace sluice {
namespace {

using namespace testing_linear;  // NOLINT(google-build-using-namespace)

std::vector<CpuIsa> Isas() {
  std::vector<CpuIsa> isas;
  for (int isa = 0; isa <= static_cast<int>(DetectCpuIsa()); ++isa) {
    isas.push_back(static_cast<CpuIsa>(isa));
  }
  return isas;
}

struct Shape {
  int64_t m, n, k;
  int64_t row_begin = 0, col_begin = 0;  // of the weights in their whole matrix
};

// Edges of the 16 lanes, of the tiles (16, 32 or 64 rows, 32 tokens), of scale blocks (128) and of
// panels (256 or 512, several of them).
const Shape kShapes[] = {
    {0, 8, 16},
    {1, 0, 16},
    {2, 3, 0},
    {1, 1, 1},
    {1, 2, 15},
    {1, 9, 16},
    {1, 31, 17},
    {2, 32, 127},
    {3, 33, 128},
    {4, 7, 129},
    {5, 40, 255},
    {8, 64, 256},
    {15, 17, 300},
    {16, 16, 511},
    {17, 65, 512},
    {31, 33, 513},
    {32, 32, 640},
    {33, 31, 641},
    {65, 100, 96},
    {1, 130, 700, 100, 60},
    {4, 130, 700, 127, 127},
    {40, 130, 700, 1, 1},
    {6, 5, 60, 3, 100},
    {20, 70, 1200, 64, 64},
    {5, 48, 1120},
    {1, 5, 20, 120, 120},
};
constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3};

std::string Describe(const Shape& shape, DType dtype, CpuIsa isa) {
  return absl::StrCat("m ", shape.m, " n ", shape.n, " k ", shape.k, " at ", shape.row_begin, ",",
                      shape.col_begin, " ", DTypeName(dtype), " isa ", static_cast<int>(isa),
                      " seed ", kSeed);
}

// The largest error relative to the largest reference value.
class ErrorMeter {
 public:
  void Add(float got, double want) {
    error_ = std::isnan(got) ? INFINITY : std::max(error_, std::fabs(got - want));
    largest_ = std::max(largest_, std::fabs(want));
  }
  double relative() const { return largest_ == 0 ? error_ : error_ / largest_; }

 private:
  double error_ = 0, largest_ = 0;
};

class LinearTest : public testing::TestWithParam<Numerics> {
 protected:
  // Products round once per step; in fast mode activations and f32/f16 weights round to bf16.
  double tolerance() const { return GetParam() == Numerics::kExact ? 1e-5 : 0x1p-7; }
};

TEST_P(LinearTest, MatchesFloat64) {
  for (const Shape& shape : kShapes) {
    for (const DType dtype : kDTypes) {
      std::mt19937 rng(kSeed);
      const Weights w(rng, dtype, shape.n, shape.k, shape.row_begin, shape.col_begin, 3);
      Matrix x = Matrix::Random(rng, shape.m, shape.k, 5);
      const Matrix before = Matrix::Random(rng, shape.m, shape.n, 2);
      std::vector<double> products;
      for (int64_t t = 0; t < shape.m; ++t) {
        for (int64_t n = 0; n < shape.n; ++n) products.push_back(Product(x, t, w, n));
      }
      for (const CpuIsa isa : Isas()) {
        Ops ops(isa, 2, GetParam());
        for (const bool accumulate : {false, true}) {
          Matrix out = accumulate ? before : Matrix(shape.m, shape.n, 2);
          ASSERT_TRUE(ops.linear.Linear({x.View(), w.view, out.View(), accumulate}, {}).ok());
          ErrorMeter meter;
          for (int64_t t = 0; t < shape.m; ++t) {
            for (int64_t n = 0; n < shape.n; ++n) {
              const double old = accumulate ? double{before.At(t, n)} : 0.0;
              meter.Add(out.At(t, n), products[t * shape.n + n] + old);
            }
            ASSERT_EQ(out.At(t, shape.n), accumulate ? before.At(t, shape.n) : kPoison)
                << "wrote beyond a row";
          }
          EXPECT_LE(meter.relative(), tolerance()) << Describe(shape, dtype, isa);
        }
      }
    }
  }
}

TEST_P(LinearTest, GatedMatchesFloat64) {
  for (const Shape& shape : kShapes) {
    for (const DType dtype : kDTypes) {
      std::mt19937 rng(kSeed);
      const Weights gate(rng, dtype, shape.n, shape.k, shape.row_begin, shape.col_begin, 3);
      const Weights up(rng, dtype, shape.n, shape.k, 0, shape.col_begin);
      Matrix x = Matrix::Random(rng, shape.m, shape.k, 5);
      std::vector<double> products;
      for (int64_t t = 0; t < shape.m; ++t) {
        for (int64_t n = 0; n < shape.n; ++n) {
          products.push_back(Silu(Product(x, t, gate, n)) * Product(x, t, up, n));
        }
      }
      for (const CpuIsa isa : Isas()) {
        Ops ops(isa, 2, GetParam());
        Matrix out(shape.m, shape.n, 1);
        ASSERT_TRUE(ops.linear.GatedLinear({x.View(), gate.view, up.view, out.View()}, {}).ok());
        ErrorMeter meter;
        for (int64_t t = 0; t < shape.m; ++t) {
          for (int64_t n = 0; n < shape.n; ++n) meter.Add(out.At(t, n), products[t * shape.n + n]);
          ASSERT_EQ(out.At(t, shape.n), kPoison) << "wrote beyond a row";
        }
        EXPECT_LE(meter.relative(), 2 * tolerance()) << Describe(shape, dtype, isa);
      }
    }
  }
}

TEST_P(LinearTest, GroupsMeetTheirOwnWeights) {
  // Empty groups first, last and between; one row; tile edges; rows beyond the last group.
  const std::vector<int32_t> begins = {0, 0, 1, 1, 3, 35, 67, 100, 100};
  constexpr int64_t kRows = 110, kN = 50, kK = 150;
  const int groups = static_cast<int>(begins.size()) - 1;
  for (const CpuIsa isa : Isas()) {
    Ops ops(isa, 2, GetParam());
    for (const DType dtype : kDTypes) {
      std::mt19937 rng(kSeed);
      std::vector<Weights> gates, ups;
      std::vector<WeightView> gate_views, up_views;
      for (int g = 0; g < groups; ++g) {
        gates.emplace_back(rng, dtype, kN, kK);
        ups.emplace_back(rng, dtype, kN, kK);
      }
      for (int g = 0; g < groups; ++g) {
        gate_views.push_back(gates[g].view);
        up_views.push_back(ups[g].view);
      }
      Matrix x = Matrix::Random(rng, kRows, kK);
      std::vector<int32_t> offset_values = begins;
      const TensorView offsets(offset_values.data(), DType::kI32, {groups + 1});
      Matrix plain(kRows, kN), gated(kRows, kN);
      ASSERT_TRUE(ops.linear.GroupedLinear({x.View(), gate_views, offsets, plain.View()}, {}).ok());
      ASSERT_TRUE(
          ops.linear.GroupedGatedLinear({x.View(), gate_views, up_views, offsets, gated.View()}, {})
              .ok());
      ErrorMeter plain_meter, gated_meter;
      for (int g = 0; g < groups; ++g) {
        for (int64_t t = begins[g]; t < begins[g + 1]; ++t) {
          for (int64_t n = 0; n < kN; ++n) {
            const double gate = Product(x, t, gates[g], n);
            plain_meter.Add(plain.At(t, n), gate);
            gated_meter.Add(gated.At(t, n), Silu(gate) * Product(x, t, ups[g], n));
          }
        }
      }
      EXPECT_LE(plain_meter.relative(), tolerance()) << DTypeName(dtype);
      EXPECT_LE(gated_meter.relative(), 2 * tolerance()) << DTypeName(dtype);
      for (int64_t t = begins.back(); t < kRows; ++t) {
        for (int64_t n = 0; n < kN; ++n) {
          ASSERT_EQ(plain.At(t, n), kPoison);
          ASSERT_EQ(gated.At(t, n), kPoison);
        }
      }
    }
  }
}

TEST_P(LinearTest, EveryFp8CodeHasItsValue) {
  // Row r holds code r once, among zeros.
  constexpr int64_t kRows = 256, kCols = 70;
  std::vector<uint8_t> codes(kRows * kCols, 0);
  for (int64_t r = 0; r < kRows; ++r) codes[r * kCols + r % kCols] = static_cast<uint8_t>(r);
  const WeightView w{codes.data(), DType::kF8E4M3, kRows, kCols, kCols};
  for (const CpuIsa isa : Isas()) {
    Ops ops(isa, 1, GetParam());
    for (const int64_t tokens : {1, 4, 20}) {
      Matrix x(tokens, kCols), out(tokens, kRows);
      x.values.assign(x.values.size(), 1.0f);
      ASSERT_TRUE(ops.linear.Linear({x.View(), w, out.View()}, {}).ok());
      for (int64_t r = 0; r < kRows; ++r) {
        const float want = F8E4M3ToF32(static_cast<uint8_t>(r)), got = out.At(tokens - 1, r);
        EXPECT_TRUE(got == want || (std::isnan(got) && std::isnan(want)))
            << "code " << r << " is " << got << ", wanted " << want << "; isa "
            << static_cast<int>(isa) << " tokens " << tokens;
      }
    }
  }
}

// Each x stands for several rows, or for none; rows beyond the last group are nobody's.
TEST_P(LinearTest, GatedGroupsGatherTheirRows) {
  std::mt19937 rng(kSeed);
  for (const int threads : {1, 3}) {
    Ops ops(DetectCpuIsa(), threads, GetParam());
    const Weights gate(rng, DType::kBF16, 40, 96), up(rng, DType::kBF16, 40, 96);
    const std::vector<WeightView> gates = {gate.view, gate.view}, ups = {up.view, up.view};
    Matrix x = Matrix::Random(rng, 5, 96), gathered(9, 96), out(9, 40), want(9, 40);
    std::vector<int32_t> rows = {1, 2, 4, -1, -1, -1, 3, 6, 0, 5}, begins = {0, 3, 7};
    for (size_t i = 0; i < rows.size(); ++i) {
      for (int64_t c = 0; rows[i] >= 0 && c < 96; ++c) {
        gathered.At(rows[i], c) = x.At(static_cast<int64_t>(i) / 2, c);
      }
    }
    const TensorView offsets(begins.data(), DType::kI32, {3}),
        pair_rows(rows.data(), DType::kI32, {5, 2});
    const auto run = [&] {
      return ops.linear.GroupedGatedLinear({x.View(), gates, ups, offsets, out.View(), pair_rows},
                                           {});
    };
    ASSERT_TRUE(
        ops.linear.GroupedGatedLinear({gathered.View(), gates, ups, offsets, want.View()}, {})
            .ok());
    ASSERT_TRUE(run().ok());
    EXPECT_EQ(out.values, want.values);
    EXPECT_EQ(out.At(7, 0), kPoison);
    rows[7] = 9;
    EXPECT_THAT(std::string(run().message()), testing::HasSubstr("pair_rows[3, 1]: is 9"));
  }
}

TEST_P(LinearTest, NoGroupsIsNoWork) {
  Ops ops(DetectCpuIsa(), 1, GetParam());
  Matrix x(3, 4), out(3, 5);
  int32_t zero = 0;
  const TensorView offsets(&zero, DType::kI32, {1});
  EXPECT_TRUE(ops.linear.GroupedLinear({x.View(), {}, offsets, out.View()}, {}).ok());
  EXPECT_EQ(out.At(0, 0), kPoison);
}

INSTANTIATE_TEST_SUITE_P(Numerics, LinearTest, testing::Values(Numerics::kExact, Numerics::kFast),
                         [](const auto& info) {
                           return info.param == Numerics::kExact ? "Exact" : "Fast";
                         });

void ExpectSameBits(const Matrix& got, const Matrix& want, const std::string& what) {
  for (int64_t t = 0; t < want.rows; ++t) {
    for (int64_t n = 0; n < want.cols; ++n) {
      ASSERT_EQ(std::bit_cast<uint32_t>(got.At(t, n)), std::bit_cast<uint32_t>(want.At(t, n)))
          << what << ": token " << t << " row " << n;
    }
  }
}

TEST(LinearExactTest, BitEqualForEveryBatchThreadCountAndInstructionSet) {
  Ops one(CpuIsa::kGeneric, 1, Numerics::kExact);
  for (const Shape& shape : kShapes) {
    for (const DType dtype : kDTypes) {
      std::mt19937 rng(kSeed);
      const Weights gate(rng, dtype, shape.n, shape.k, shape.row_begin, shape.col_begin);
      const Weights up(rng, dtype, shape.n, shape.k, shape.row_begin, shape.col_begin);
      Matrix x = Matrix::Random(rng, shape.m, shape.k);
      // Token by token, output by output.
      Matrix want(shape.m, shape.n), want_gated(shape.m, shape.n);
      for (int64_t t = 0; t < shape.m; ++t) {
        TensorView x_row = x.View().Prefix(1), row = want.View().Prefix(1);
        x_row.data = x.values.data() + t * shape.k;
        for (int64_t n = 0; n < shape.n; ++n) {
          TensorView place(&want.At(t, n), DType::kF32, {1, 1});
          ASSERT_TRUE(one.linear.Linear({x_row, gate.view.RowSlice(n, 1), place}, {}).ok());
        }
        row.data = want_gated.values.data() + t * shape.n;
        ASSERT_TRUE(one.linear.GatedLinear({x_row, gate.view, up.view, row}, {}).ok());
      }
      for (const CpuIsa isa : Isas()) {
        for (const int threads : {1, 2, 3}) {
          Ops ops(isa, threads, Numerics::kExact);
          Matrix out(shape.m, shape.n), out_gated(shape.m, shape.n);
          ASSERT_TRUE(ops.linear.Linear({x.View(), gate.view, out.View()}, {}).ok());
          ASSERT_TRUE(
              ops.linear.GatedLinear({x.View(), gate.view, up.view, out_gated.View()}, {}).ok());
          const std::string what = absl::StrCat(Describe(shape, dtype, isa), " threads ", threads);
          ExpectSameBits(out, want, what);
          ExpectSameBits(out_gated, want_gated, what + " gated");
          // The same tokens, dealt to two groups with the same weights.
          std::vector<int32_t> begins = {0, static_cast<int32_t>(shape.m / 3),
                                         static_cast<int32_t>(shape.m)};
          const TensorView offsets(begins.data(), DType::kI32, {3});
          const std::vector<WeightView> views = {gate.view, gate.view};
          Matrix out_grouped(shape.m, shape.n);
          ASSERT_TRUE(
              ops.linear.GroupedLinear({x.View(), views, offsets, out_grouped.View()}, {}).ok());
          ExpectSameBits(out_grouped, want, what + " grouped");
        }
      }
    }
  }
}

// Bit for bit: which other weights are multiplied in the same call changes nothing.
TEST_P(LinearTest, MultiIsEachProductAlone) {
  for (const int64_t m : {0, 1, 5, 33}) {
    std::mt19937 rng(kSeed);
    Matrix x = Matrix::Random(rng, m, 300, 4);
    std::vector<Weights> weights;
    weights.emplace_back(rng, DType::kF8E4M3, 96, 300);
    weights.emplace_back(rng, DType::kBF16, 1, 300);
    weights.emplace_back(rng, DType::kF8E4M3, 65, 300, 128);
    for (const CpuIsa isa : Isas()) {
      Ops ops(isa, 2, GetParam());
      std::vector<WeightView> views;
      std::vector<Matrix> together, alone;
      for (const Weights& w : weights) {
        views.push_back(w.view);
        together.emplace_back(m, w.view.rows, 3);
        alone.emplace_back(m, w.view.rows, 3);
      }
      std::vector<TensorView> outs;
      for (Matrix& out : together) outs.push_back(out.View());
      ASSERT_TRUE(ops.linear.MultiLinear({x.View(), views, outs}, {}).ok());
      for (size_t i = 0; i < views.size(); ++i) {
        ASSERT_TRUE(ops.linear.Linear({x.View(), views[i], alone[i].View()}, {}).ok());
        ExpectSameBits(together[i], alone[i], absl::StrCat("m ", m, " weight ", i));
      }
    }
  }
}

TEST(LinearExactTest, F32PrecisionIsExactInFastModeToo) {
  std::mt19937 rng(kSeed);
  const Weights w(rng, DType::kF32, 70, 300);
  Matrix x = Matrix::Random(rng, 20, 300);
  Matrix exact(20, 70), fast(20, 70);
  Ops exact_ops(DetectCpuIsa(), 2, Numerics::kExact), fast_ops(DetectCpuIsa(), 2, Numerics::kFast);
  ASSERT_TRUE(exact_ops.linear.Linear({x.View(), w.view, exact.View()}, {}).ok());
  ASSERT_TRUE(
      fast_ops.linear.Linear({x.View(), w.view, fast.View(), false, Precision::kF32}, {}).ok());
  ExpectSameBits(fast, exact, "router");
}

TEST(LinearErrorTest, NamesTheOffender) {
  Ops ops(DetectCpuIsa(), 1, Numerics::kExact);
  std::mt19937 rng(kSeed);
  const Weights good(rng, DType::kBF16, 5, 8);
  Matrix x(3, 8), narrow(3, 7), out(3, 5);
  auto message = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  using testing::HasSubstr;
  EXPECT_THAT(message(ops.linear.Linear({narrow.View(), good.view, out.View()}, {})),
              HasSubstr("x: is F32 [3, 7], wanted F32 [-1, 8]"));
  EXPECT_THAT(message(ops.linear.Linear({x.View(), good.view, narrow.View()}, {})),
              HasSubstr("out: is F32 [3, 7], wanted F32 [3, 5]"));
  WeightView integer = good.view;
  integer.dtype = DType::kI32;
  EXPECT_THAT(message(ops.linear.Linear({x.View(), integer, out.View()}, {})),
              HasSubstr("w: is I32"));
  WeightView absent = good.view;
  absent.data = nullptr;
  EXPECT_THAT(message(ops.linear.Linear({x.View(), absent, out.View()}, {})),
              HasSubstr("w: null data"));
  WeightView overlapping = good.view;
  overlapping.row_stride = 7;
  EXPECT_THAT(message(ops.linear.Linear({x.View(), overlapping, out.View()}, {})),
              HasSubstr("w: row stride 7"));
  EXPECT_THAT(message(ops.linear.GatedLinear(
                  {x.View(), good.view, good.view.RowSlice(0, 4), out.View()}, {})),
              HasSubstr("up: is [4, 8], wanted [5, 8]"));
  const std::vector<WeightView> pair = {good.view, good.view};
  const std::vector<TensorView> one_out = {out.View()}, odd_outs = {out.View(), narrow.View()};
  EXPECT_THAT(message(ops.linear.MultiLinear({x.View(), pair, one_out}, {})),
              HasSubstr("outs: 1 tensors, wanted 2"));
  EXPECT_THAT(message(ops.linear.MultiLinear({x.View(), pair, odd_outs}, {})),
              HasSubstr("outs[1]: is F32 [3, 7], wanted F32 [3, 5]"));
  const Weights f8(rng, DType::kF8E4M3, 5, 8);
  WeightView huge_blocks = f8.view;
  huge_blocks.scale_block = 1024;
  EXPECT_THAT(message(ops.linear.Linear({x.View(), huge_blocks, out.View()}, {})),
              HasSubstr("scale block 1024"));
  const std::vector<WeightView> two = {good.view, good.view};
  for (const std::vector<int32_t>& bad :
       {std::vector<int32_t>{1, 2, 3}, {0, 2, 1}, {0, 2, 4}, {0, -1, 2}}) {
    std::vector<int32_t> values = bad;
    const TensorView offsets(values.data(), DType::kI32, {3});
    EXPECT_THAT(message(ops.linear.GroupedLinear({x.View(), two, offsets, out.View()}, {})),
                HasSubstr("offsets["));
  }
  EXPECT_EQ(out.At(0, 0), kPoison) << "something was computed";
}

}  // namespace
}  // namespace sluice
