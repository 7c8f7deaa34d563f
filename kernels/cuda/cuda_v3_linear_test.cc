// The dense FP8 products of DeepSeek-V3's layers on the GPU, of as many rows as are served, with
// the kernels and plans that they are served by, against the CPU in f32.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/cuda_test_util.h"

namespace sluice {
namespace {

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

// How many products cuBLASLt has done so far.
int64_t CublasLtCalls(const Backend& backend) {
  int64_t calls = 0;
  for (const KernelCalls::Entry& entry : backend.kernel_calls()->Snapshot()) {
    if (std::string_view(entry.kernel) == "fp8_cublaslt") calls += entry.calls;
  }
  return calls;
}

class ProductsTest : public CudaOpsTest {
 protected:
  // Of so many rows each, those of `compared` that there are against the CPU. `compared` rises, and
  // the largest of `sizes` has all of it.
  void Compare(const Product& product, const std::vector<int64_t>& sizes,
               const std::vector<int64_t>& compared);
};

void ProductsTest::Compare(const Product& product, const std::vector<int64_t>& sizes,
                           const std::vector<int64_t>& compared) {
  constexpr int64_t kBehind = 8;
  const int64_t most = *std::max_element(sizes.begin(), sizes.end());
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
  const OwnedTensor x(DType::kF32, {most, product.k});
  numbers.Fill(x, most);
  const TensorView device_x = fast.Up(x);
  const size_t parts = product.kind == Product::kGated ? 1 : product.n.size();
  std::vector<OwnedTensor> before, wanted;  // of all rows, of those that are compared
  std::vector<TensorView> wanted_views;
  const int64_t count = static_cast<int64_t>(compared.size());
  for (size_t p = 0; p < parts; ++p) {
    const int64_t n = product.n[p];
    wanted.emplace_back(DType::kF32, std::initializer_list<int64_t>{count, n});
    if (!accumulates) continue;
    before.emplace_back(DType::kF32, std::initializer_list<int64_t>{most, n});
    numbers.Fill(before[p], most);
    wanted[p] = Some(before[p], compared);
  }
  for (const OwnedTensor& part : wanted) wanted_views.push_back(part.view());
  const OwnedTensor rounded = Quantized(Some(x, compared), count, product.k);
  ASSERT_TRUE(Multiply(cpu_->linear(), product, rounded.view(), host, wanted_views).ok());

  const bool one_weight = product.n.size() == 1;
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
    const int64_t calls = CublasLtCalls(fast.backend());
    const absl::Status status =
        Multiply(fast.backend().linear(), product, device_x.Prefix(m), device, outs);
    ASSERT_TRUE(status.ok()) << status;
    const bool on_cublas_lt = one_weight && m > 128 && (m % 4 == 0 || m > 1024);
    EXPECT_EQ(CublasLtCalls(fast.backend()) - calls, on_cublas_lt ? 1 : 0)
        << "products by cuBLASLt";
    std::vector<int64_t> rows = compared;
    rows.erase(std::lower_bound(rows.begin(), rows.end(), m), rows.end());
    const int64_t row_count = static_cast<int64_t>(rows.size());
    for (size_t p = 0; p < parts; ++p) {
      SCOPED_TRACE(testing::Message() << "weight " << p << " of " << product.n[p] << " rows");
      const OwnedTensor all = fast.Down(rooms[p]);
      const OwnedTensor some = Some(all, rows);
      EXPECT_LT(RelativeError(wanted[p], some, row_count * product.n[p]), kTensorCoreError);
      SCOPED_TRACE(testing::Message() << "rows " << testing::PrintToString(rows));
      ExpectRowsClose(wanted[p], some, row_count, kTensorCoreRowError, kTensorCoreElementError);
      ExpectOnlyWritten(all, m);
    }
  }
}

class V3ProductsTest : public ProductsTest, public testing::WithParamInterface<Product> {};

// Of the tiles' kernels, and of cuBLASLt for one weight and more rows than 128: a multiple of 4, or
// more than 1024 and the last ones by ours.
TEST_P(V3ProductsTest, AreThoseOfTheQuantizedActivations) {
  // The first and last rows of all sizes, of what cuBLASLt has of them, and of tiles; others.
  Compare(GetParam(), {1, 64, 128, 132, 256, 1031, 2052},
          {0, 40, 63, 64, 127, 128, 131, 200, 255, 700, 1027, 1028, 1030, 1984, 2051});
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

// Of prompts: rows for which cuBLASLt's algorithm was chosen with more rows than there are, and
// with just as many. As many of them as fit into the time of a test.
struct Prompts {
  Product product;
  int64_t most;
};

void PrintTo(const Prompts& prompts, std::ostream* os) { *os << prompts.product.name; }

class V3PromptProductsTest : public ProductsTest, public testing::WithParamInterface<Prompts> {};

TEST_P(V3PromptProductsTest, AreThoseOfTheQuantizedActivations) {
  const int64_t most = GetParam().most;
  std::vector<int64_t> sizes = {260, 516, 1024, 4100, 8192, 16384};
  sizes.erase(std::upper_bound(sizes.begin(), sizes.end(), most), sizes.end());
  sizes.push_back(516);  // again: nothing was refused, and its algorithm is known
  std::vector<int64_t> compared = {0,    63,   64,   127,  128,  255,   256,  259,  383,
                                   384,  511,  515,  640,  1023, 1500,  2047, 2048, 4095,
                                   4096, 4099, 5120, 7000, 8191, 12288, 16383};
  compared.erase(std::lower_bound(compared.begin(), compared.end(), most), compared.end());
  Compare(GetParam().product, sizes, compared);
}

INSTANTIATE_TEST_SUITE_P(
    Layers, V3PromptProductsTest,
    testing::Values(Prompts{{"q_a_and_kv_a", {1536, 576}, 7168, Product::kMulti}, 8192},
                    Prompts{{"q_b", {24576}, 1536, Product::kPlain}, 4100},
                    Prompts{{"o", {7168}, 16384, Product::kAccumulated}, 4100},
                    Prompts{{"expert_gate_and_up", {2048, 2048}, 7168, Product::kGated}, 4100},
                    Prompts{{"expert_down", {7168}, 2048, Product::kPlain}, 16384},
                    Prompts{{"expert_down_accumulated", {7168}, 2048, Product::kAccumulated},
                            8192}),
    [](const auto& info) { return std::string(info.param.product.name); });

}  // namespace
}  // namespace sluice
