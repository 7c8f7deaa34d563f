// The dense FP8 products of DeepSeek-V3's layers on the GPU, of as many rows as are served, with
// the kernels and plans that they are served by, against the CPU in f32.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_test_util.h"

namespace sluice {
namespace {

// Large matrices whose rows are pieces of one sequence of random numbers, each from a place of its
// own: fast to make.
class CutNumbers {
 public:
  explicit CutNumbers(uint32_t seed) : random_(seed), numbers_(kNumbers), codes_(kNumbers) {
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < kNumbers; ++i) {
      numbers_[i] = normal(random_);
      codes_[i] = F32ToF8E4M3(32 * normal(random_));
    }
  }

  // Fills the first `rows`.
  void Fill(const OwnedTensor& to, int64_t rows) {
    const int64_t columns = to.view().row_elements();
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(numbers_.data() + Place(columns), columns, to.data<float>() + r * columns);
    }
  }

  OwnedWeight Weight(int64_t rows, int64_t columns) {
    OwnedWeight weight;
    weight.bytes.resize(static_cast<size_t>(rows * columns));
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(codes_.data() + Place(columns), columns, weight.bytes.data() + r * columns);
    }
    const int64_t scale_columns = (columns + 127) / 128;
    weight.scales.resize(static_cast<size_t>((rows + 127) / 128 * scale_columns));
    std::uniform_real_distribution<float> uniform(0.5f / 32, 2.0f / 32);
    for (float& scale : weight.scales) scale = uniform(random_);
    weight.view = {.data = weight.bytes.data(),
                   .dtype = DType::kF8E4M3,
                   .rows = rows,
                   .cols = columns,
                   .row_stride = columns,
                   .scales = weight.scales.data(),
                   .scale_row_stride = scale_columns};
    return weight;
  }

 private:
  static constexpr size_t kNumbers = size_t{1} << 20;

  size_t Place(int64_t columns) { return random_() % (kNumbers - static_cast<size_t>(columns)); }

  std::mt19937 random_;
  std::vector<float> numbers_;
  std::vector<uint8_t> codes_;
};

struct Product {
  const char* name;
  std::vector<int64_t> n;  // of each weight; gate and up are two
  int64_t k;
  enum { kPlain, kAccumulated, kGated, kMulti } kind;
};

void PrintTo(const Product& product, std::ostream* os) { *os << product.name; }

absl::Status Multiply(LinearOps& ops, const Product& product, const TensorView& x,
                      const std::vector<WeightView>& weights, const std::vector<TensorView>& outs) {
  if (product.kind == Product::kMulti) return ops.MultiLinear({x, weights, outs}, {});
  if (product.kind == Product::kGated) {
    return ops.GatedLinear({x, weights[0], weights[1], outs[0]}, {});
  }
  return ops.Linear({x, weights[0], outs[0], product.kind == Product::kAccumulated}, {});
}

// Some rows of a matrix.
OwnedTensor Some(const OwnedTensor& all, const std::vector<int64_t>& rows) {
  const int64_t columns = all.view().row_elements();
  OwnedTensor some(DType::kF32, {static_cast<int64_t>(rows.size()), columns});
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(all.view().Row<float>(rows[i]), columns,
                some.view().Row<float>(static_cast<int64_t>(i)));
  }
  return some;
}

class V3ProductsTest : public CudaOpsTest, public testing::WithParamInterface<Product> {};

// Of the tiles' kernels, and of cuBLASLt for one weight and more rows than 128: a multiple of 4, or
// more than 1024 and the last ones by ours.
TEST_P(V3ProductsTest, AreThoseOfTheQuantizedActivations) {
  // The first and last rows of all sizes, of what cuBLASLt has of them, and of tiles; others.
  const std::vector<int64_t> sizes = {1, 64, 128, 132, 256, 1031, 2052};
  const std::vector<int64_t> compared = {0,   40,  63,   64,   127,  128,  131, 200,
                                         255, 700, 1027, 1028, 1030, 1984, 2051};
  constexpr int64_t kMost = 2052, kBehind = 8;
  const Product& product = GetParam();
  const bool accumulates = product.kind == Product::kAccumulated;
  Device fast(Numerics::kFast);
  CutNumbers numbers(Seed());

  std::vector<OwnedWeight> weights;
  std::vector<WeightView> host, device;
  for (const int64_t n : product.n) weights.push_back(numbers.Weight(n, product.k));
  for (const OwnedWeight& w : weights) {
    host.push_back(w.view);
    device.push_back(fast.Up(w));
  }
  const OwnedTensor x(DType::kF32, {kMost, product.k});
  numbers.Fill(x, kMost);
  const TensorView device_x = fast.Up(x);
  const size_t parts = product.kind == Product::kGated ? 1 : product.n.size();
  std::vector<OwnedTensor> before, wanted;  // of all rows, of those that are compared
  std::vector<TensorView> wanted_views;
  const int64_t count = static_cast<int64_t>(compared.size());
  for (size_t p = 0; p < parts; ++p) {
    const int64_t n = product.n[p];
    wanted.emplace_back(DType::kF32, std::initializer_list<int64_t>{count, n});
    if (!accumulates) continue;
    before.emplace_back(DType::kF32, std::initializer_list<int64_t>{kMost, n});
    numbers.Fill(before[p], kMost);
    wanted[p] = Some(before[p], compared);
  }
  for (const OwnedTensor& part : wanted) wanted_views.push_back(part.view());
  const OwnedTensor rounded = Quantized(Some(x, compared), count, product.k);
  ASSERT_TRUE(Multiply(cpu_->linear(), product, rounded.view(), host, wanted_views).ok());

  for (const int64_t m : sizes) {
    SCOPED_TRACE(testing::Message() << m << " rows");
    std::vector<TensorView> rooms, outs;
    for (size_t p = 0; p < parts; ++p) {
      OwnedTensor room(DType::kF32, {m + kBehind, product.n[p]});
      if (accumulates) {
        std::copy_n(before[p].data<float>(), m * product.n[p], room.data<float>());
      }
      rooms.push_back(fast.Up(room));
      outs.push_back(rooms[p].Prefix(m));
    }
    ASSERT_TRUE(Multiply(fast.backend().linear(), product, device_x.Prefix(m), device, outs).ok());
    std::vector<int64_t> rows = compared;
    rows.erase(std::lower_bound(rows.begin(), rows.end(), m), rows.end());
    for (size_t p = 0; p < parts; ++p) {
      const int64_t n = product.n[p];
      const OwnedTensor all = fast.Down(rooms[p]);
      EXPECT_LT(RelativeError(wanted[p], Some(all, rows), static_cast<int64_t>(rows.size()) * n),
                kTensorCoreError);
      for (int64_t i = 0; i < all.size(); ++i) {
        ASSERT_EQ(std::isnan(all.data<float>()[i]), i >= m * n)
            << "row " << i / n << ", column " << i % n;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layers, V3ProductsTest,
    testing::Values(Product{"q_a_and_kv_a", {1536, 576}, 7168, Product::kMulti},
                    Product{"q_b", {24576}, 1536, Product::kPlain},
                    Product{"o", {7168}, 16384, Product::kAccumulated},
                    Product{"expert_gate_and_up", {2048, 2048}, 7168, Product::kGated},
                    Product{"expert_down", {7168}, 2048, Product::kPlain},
                    Product{"expert_down_accumulated", {7168}, 2048, Product::kAccumulated},
                    Product{"dense_gate_and_up", {18432, 18432}, 7168, Product::kGated},
                    Product{"dense_down", {7168}, 18432, Product::kAccumulated}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace sluice
