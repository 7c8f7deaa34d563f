// Embeddings, norms, rows, the write to the KV cache and refusals on the GPU against the CPU
// backend.
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/cuda/cuda_test_util.h"

namespace sluice {
namespace {

// In vectors and, where columns or addresses forbid them, one by one.
TEST_F(CudaOpsTest, Embeddings) {
  struct Case {
    DType dtype;
    int64_t width, offset;
  };
  std::vector<Case> cases;
  for (const DType dtype : kWeightTypes) {
    for (const int64_t width : {1, 512, 513, 7168}) cases.push_back({dtype, width, 0});
    cases.push_back({dtype, 512, 1});
  }
  for (const auto& [dtype, width, offset] : cases) {
    SCOPED_TRACE(testing::Message() << DTypeName(dtype) << ", " << width);
    const OwnedWeight table = RandomWeight(dtype, 300, width, Seed(), 1.0f, offset);
    const OwnedTensor ids = MakeI32({5}, {299, 0, -3, 17, -1});
    const OwnedTensor by_slot = MakeI32({3}, {42, 7, 299});
    const OwnedTensor out(DType::kF32, {5, width}), resolved(DType::kI32, {5});
    const TensorView device_out = gpu_.Up(out), device_resolved = gpu_.Up(resolved);
    ASSERT_TRUE(
        cpu_->elementwise()
            .Embed({ids.view(), by_slot.view(), table.view, out.view(), resolved.view()}, {})
            .ok());
    ASSERT_TRUE(
        gpu_.backend()
            .elementwise()
            .Embed({gpu_.Up(ids), gpu_.Up(by_slot), gpu_.Up(table), device_out, device_resolved},
                   {})
            .ok());
    ExpectSame(out, gpu_.Down(device_out), 4);
    ExpectSame(resolved, gpu_.Down(device_resolved), 4);
  }
}

// Widths that are no multiple of four, that fit into a block's registers, and that do not.
TEST_F(CudaOpsTest, NormsOfAnyWidth) {
  for (const int64_t width : {1, 4, 31, 256, 257, 1536, 7168, 8192, 8196, 20000}) {
    for (const int64_t rows : {0, 1, 33}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << width);
      const OwnedTensor x = Random({rows, width}), weight = Random({width});
      const OwnedTensor out(DType::kF32, {rows, width});
      const TensorView device_out = gpu_.Up(out), device_x = gpu_.Up(x);
      ASSERT_TRUE(
          cpu_->elementwise().RmsNorm({x.view(), weight.view(), 1e-6f, out.view()}, {}).ok());
      ASSERT_TRUE(gpu_.backend()
                      .elementwise()
                      .RmsNorm({device_x, gpu_.Up(weight), 1e-6f, device_out}, {})
                      .ok());
      EXPECT_LT(Difference(out, gpu_.Down(device_out)), 1e-5);
      ASSERT_TRUE(gpu_.backend()
                      .elementwise()
                      .RmsNorm({device_x, gpu_.Up(weight), 1e-6f, device_x}, {})
                      .ok());
      EXPECT_LT(Difference(out, gpu_.Down(device_x)), 1e-5) << "in place";
    }
  }
}

TEST_F(CudaOpsTest, RowsOfAnyWidth) {
  for (const int64_t width : {1, 4, 300, 301, 24576}) {
    for (const int64_t count : {0, 1, 40}) {
      SCOPED_TRACE(testing::Message() << count << " x " << width);
      const OwnedTensor x = Random({9, width}), rows = Integers({count}, 0, 8);
      const OwnedTensor out(DType::kF32, {count, width});
      const TensorView device_out = gpu_.Up(out);
      ASSERT_TRUE(cpu_->elementwise().GatherRows({x.view(), rows.view(), out.view()}, {}).ok());
      ASSERT_TRUE(gpu_.backend()
                      .elementwise()
                      .GatherRows({gpu_.Up(x), gpu_.Up(rows), device_out}, {})
                      .ok());
      ExpectSame(out, gpu_.Down(device_out), 4);
    }
  }
}

// In vectors and one by one; tokens without a row write nothing but their queries.
TEST_F(CudaOpsTest, CacheRowsAndQueries) {
  const MlaDims cases[] = {{128, 128, 64, 128, 512}, {3, 4, 8, 4, 36}, {2, 5, 6, 3, 7}};
  for (const MlaDims& dims : cases) {
    for (const int64_t tokens : {1, 70}) {
      SCOPED_TRACE(testing::Message() << dims.num_heads << " heads, " << tokens << " tokens");
      const OwnedTensor q = Random({tokens, dims.num_heads * dims.q_dim()}),
                        kv_a = Random({tokens, dims.kv_dim()}), norm = Random({dims.kv_lora_rank}),
                        angles = Random({300, dims.rope_dim}),
                        positions = Integers({tokens}, 0, 299);
      OwnedTensor rows(DType::kI32, {tokens}), cache = Random({2, kPageTokens, dims.kv_dim()});
      for (int64_t t = 0; t < tokens; ++t) {
        rows.data<int32_t>()[t] = t % 5 == 3 ? -1 : static_cast<int32_t>(127 - t);
      }
      const TensorView device_q = gpu_.Up(q), device_cache = gpu_.Up(cache);
      ASSERT_TRUE(cpu_->attention()
                      .MlaCacheWrite({dims, q.view(), kv_a.view(), norm.view(), 1e-6f,
                                      angles.view(), positions.view(), rows.view(), cache.view()},
                                     {})
                      .ok());
      ASSERT_TRUE(
          gpu_.backend()
              .attention()
              .MlaCacheWrite({dims, device_q, gpu_.Up(kv_a), gpu_.Up(norm), 1e-6f, gpu_.Up(angles),
                              gpu_.Up(positions), gpu_.Up(rows), device_cache},
                             {})
              .ok());
      EXPECT_LT(Difference(q, gpu_.Down(device_q)), 1e-6);
      EXPECT_LT(Difference(cache, gpu_.Down(device_cache)), 1e-6);
    }
  }
}

TEST_F(CudaOpsTest, ErrorsNameWhatIsWrong) {
  const OwnedTensor x = Random({2, 16}), out = Random({2, 9});
  const OwnedWeight w = RandomWeight(DType::kBF16, 8, 16, Seed(), 1.0f);
  const absl::Status status =
      gpu_.backend().linear().Linear({gpu_.Up(x), gpu_.Up(w), gpu_.Up(out)}, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("out"));
  const auto huge = gpu_.backend().Allocate(size_t{1} << 50, "KV cache of layer 7");
  EXPECT_EQ(huge.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(huge.status().message()), testing::HasSubstr("KV cache of layer 7"));
  EXPECT_TRUE(gpu_.backend().Sync({}).ok());  // neither error stays
}

}  // namespace
}  // namespace sluice
