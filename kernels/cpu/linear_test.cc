#include "kernels/cpu/linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/float_convert.h"

namespace sluice {
namespace {

constexpr int kSeed = 20261122;
constexpr float kPoison = -7777.25f;

// A slice of a larger matrix with random contents, as a checkpoint would hold it.
struct Weights {
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
  WeightView view;
  std::vector<double> values;  // of the slice, scales included

  Weights(std::mt19937& rng, DType dtype, int64_t rows, int64_t cols, int64_t row_begin = 0,
          int64_t col_begin = 0, int64_t cols_after = 0) {
    const int64_t whole_rows = row_begin + rows, whole_cols = col_begin + cols + cols_after;
    const int64_t element = static_cast<int64_t>(DTypeBytes(dtype));
    bytes.resize(whole_rows * whole_cols * element);
    std::normal_distribution<float> normal(0.0f, dtype == DType::kF8E4M3 ? 60.0f : 1.0f);
    for (int64_t i = 0; i < whole_rows * whole_cols; ++i) {
      const float value = normal(rng);
      const uint32_t f32 = std::bit_cast<uint32_t>(value);
      // Any finite f16 will do: a bf16 pattern with its top exponent bit cleared.
      const uint16_t bf16 = F32ToBf16(value), f16 = bf16 & 0xbfff;
      const uint8_t f8 = F32ToF8E4M3(value);
      const void* from = dtype == DType::kF32    ? static_cast<const void*>(&f32)
                         : dtype == DType::kBF16 ? static_cast<const void*>(&bf16)
                         : dtype == DType::kF16  ? static_cast<const void*>(&f16)
                                                 : static_cast<const void*>(&f8);
      std::memcpy(bytes.data() + i * element, from, element);
    }
    WeightView whole{bytes.data(), dtype, whole_rows, whole_cols, whole_cols};
    if (dtype == DType::kF8E4M3) {
      const int64_t scale_cols = (whole_cols + 127) / 128;
      for (int64_t i = 0; i < (whole_rows + 127) / 128 * scale_cols; ++i) {
        scales.push_back(std::uniform_real_distribution<float>(0.001f, 0.03f)(rng));
      }
      whole.scales = scales.data();
      whole.scale_row_stride = scale_cols;
    }
    view = whole.RowSlice(row_begin, rows).ColSlice(col_begin, cols);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) values.push_back(Widened(r, c));
    }
  }

  double Widened(int64_t row, int64_t col) const {
    const char* at = static_cast<const char*>(view.data) +
                     (row * view.row_stride + col) * static_cast<int64_t>(DTypeBytes(view.dtype));
    uint16_t half;
    float f32;
    switch (view.dtype) {
      case DType::kBF16:
        std::memcpy(&half, at, 2);
        return Bf16ToF32(half);
      case DType::kF16:
        std::memcpy(&half, at, 2);
        return F16ToF32(half);
      case DType::kF8E4M3:
        return double{F8E4M3ToF32(static_cast<uint8_t>(*at))} * double{view.ScaleAt(row, col)};
      default:
        std::memcpy(&f32, at, 4);
        return f32;
    }
  }
};

// f32 [rows, cols] inside a wider matrix, poisoned everywhere until filled.
struct Matrix {
  int64_t rows, cols, stride;
  std::vector<float> values;

  Matrix(int64_t rows_in, int64_t cols_in, int64_t padding = 0)
      : rows(rows_in), cols(cols_in), stride(cols_in + padding), values(rows * stride, kPoison) {}
  static Matrix Random(std::mt19937& rng, int64_t rows, int64_t cols, int64_t padding = 0) {
    Matrix matrix(rows, cols, padding);
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) matrix.At(r, c) = normal(rng);
    }
    return matrix;
  }
  float& At(int64_t row, int64_t col) { return values[row * stride + col]; }
  float At(int64_t row, int64_t col) const { return values[row * stride + col]; }
  TensorView View() {
    TensorView view(values.data(), DType::kF32, {rows, cols});
    view.row_stride = stride;
    return view;
  }
};

double Product(const Matrix& x, int64_t token, const Weights& w, int64_t row) {
  double sum = 0;
  for (int64_t k = 0; k < x.cols; ++k) sum += double{x.At(token, k)} * w.values[row * x.cols + k];
  return sum;
}

double Silu(double value) { return value / (1 + std::exp(-value)); }

// One LinearOps with its thread pool.
struct Ops {
  ThreadPool pool;
  CpuLinearOps linear;
  Ops(CpuIsa isa, int threads, Numerics numerics)
      : pool(threads), linear(CpuContext{pool, isa, numerics}) {}
};

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

// Edges of the 16 lanes, of the tiles (32 rows, 32 tokens), of scale blocks (128) and of panels
// (512).
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
        x_row.data = &x.values[t * shape.k];
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
