// The router's product on the GPU against sums in double, and the same bits whatever the batch.
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_test_util.h"

namespace sluice {
namespace {

using CudaGateLinearTest = CudaOpsTest;

// |got - sums in double| by what |sums| is to be expected from the products: a single sum may be
// near zero.
double Error(const OwnedTensor& x, const OwnedWeight& w, const OwnedTensor& got, int64_t m,
             int64_t n, int64_t k) {
  double error = 0, size = 1e-60;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < k; ++c) {
        const double product = static_cast<double>(x.data<float>()[i * k + c]) *
                               w.values[static_cast<size_t>(j * k + c)];
        sum += product;
        size += product * product;
      }
      const double difference = got.data<float>()[i * n + j] - sum;
      error += difference * difference;
    }
  }
  return std::sqrt(error / size);
}

// Edges of tiles (64 rows, 64 or 128 columns), of chunks (32 of k), of groups (224), and of the
// number of rows from which blocks go through all groups (513).
TEST_F(CudaGateLinearTest, HasF32Quality) {
  const struct {
    int64_t m, n, k;
  } cases[] = {{0, 256, 64},   {1, 1, 8},      {1, 256, 7168},  {63, 65, 232},
               {64, 64, 224},  {65, 129, 456}, {3, 256, 2040},  {129, 8, 40},
               {512, 16, 448}, {513, 16, 448}, {700, 130, 1000}};
  for (const auto& c : cases) {
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(testing::Message()
                   << DTypeName(dtype) << " " << c.m << " x " << c.n << " x " << c.k);
      const OwnedTensor x = Random({c.m, c.k});
      const OwnedWeight w = RandomWeight(dtype, c.n, c.k, Seed(), 0.02f);
      const TensorView out = gpu_.Up(OwnedTensor(DType::kF32, {c.m, c.n}));
      ASSERT_TRUE(
          gpu_.backend()
              .linear()
              .Linear({.x = gpu_.Up(x), .w = gpu_.Up(w), .out = out, .precision = Precision::kF32},
                      {})
              .ok());
      const OwnedTensor got = gpu_.Down(out);
      EXPECT_LT(Error(x, w, got, c.m, c.n, c.k), 5e-7);
    }
  }
}

TEST_F(CudaGateLinearTest, ARowDoesNotDependOnTheOthers) {
  const int64_t rows = 600, n = 200, k = 1288;
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const OwnedTensor x = Random({rows, k});
    const OwnedWeight w = RandomWeight(dtype, n, k, Seed(), 0.02f);
    const TensorView device_x = gpu_.Up(x);
    const WeightView device_w = gpu_.Up(w);
    const auto run = [&](int64_t begin, int64_t count) {
      const TensorView out = gpu_.Up(OwnedTensor(DType::kF32, {count, n}));
      EXPECT_TRUE(gpu_.backend()
                      .linear()
                      .Linear({.x = device_x.Slice(begin, count),
                               .w = device_w,
                               .out = out,
                               .precision = Precision::kF32},
                              {})
                      .ok());
      return gpu_.Down(out);
    };
    const OwnedTensor all = run(0, rows);
    for (const int64_t count : {1, 70, 512}) {
      const int64_t begin = rows - count;
      const OwnedTensor some = run(begin, count);
      for (int64_t i = 0; i < count * n; ++i) {
        ASSERT_EQ(some.data<float>()[i], all.data<float>()[begin * n + i])
            << DTypeName(dtype) << ", " << count << " rows, element " << i;
      }
    }
  }
}

// Magnitudes far apart: what a part of x is too small for must not be lost.
TEST_F(CudaGateLinearTest, KeepsSmallBesideLarge) {
  const int64_t k = 512;
  OwnedTensor x = Random({4, k});
  for (int64_t i = 0; i < 4 * k; ++i) {
    x.data<float>()[i] *= std::ldexp(1.0f, static_cast<int>(i % 41) - 20);
  }
  const OwnedWeight w = RandomWeight(DType::kBF16, 32, k, Seed(), 1.0f);
  const TensorView out = gpu_.Up(OwnedTensor(DType::kF32, {4, 32}));
  ASSERT_TRUE(
      gpu_.backend()
          .linear()
          .Linear({.x = gpu_.Up(x), .w = gpu_.Up(w), .out = out, .precision = Precision::kF32}, {})
          .ok());
  const OwnedTensor got = gpu_.Down(out);
  EXPECT_LT(Error(x, w, got, 4, 32, k), 5e-7);
}

}  // namespace
}  // namespace sluice
