// Gate, permutation and combination on the GPU: choices are bit for bit the CPU's.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_test_util.h"

namespace sluice {
namespace {

using CudaMoeTest = CudaOpsTest;

TEST_F(CudaMoeTest, GateIsTheCpusBitForBit) {
  const struct {
    const char* name;
    int64_t experts, top_k;
    GateScoring scoring;
    GroupScore group_score;
    int groups, kept;
    bool bias, normalize;
  } cases[] = {
      {"v3", 256, 8, GateScoring::kSigmoid, GroupScore::kTop2Sum, 8, 4, true, true},
      {"v3, no bias", 256, 8, GateScoring::kSigmoid, GroupScore::kTop2Sum, 8, 1, false, true},
      {"v3, all groups", 256, 32, GateScoring::kSigmoid, GroupScore::kTop2Sum, 8, 8, true, false},
      {"v3, many", 256, 33, GateScoring::kSigmoid, GroupScore::kTop2Sum, 8, 4, true, true},
      {"tiny", 32, 4, GateScoring::kSigmoid, GroupScore::kTop2Sum, 8, 4, true, true},
      {"v2-lite", 64, 6, GateScoring::kSoftmax, GroupScore::kNone, 1, 1, false, false},
      {"v2", 160, 6, GateScoring::kSoftmax, GroupScore::kMax, 8, 3, false, false},
      {"all", 7, 7, GateScoring::kSigmoid, GroupScore::kNone, 1, 1, true, true},
      {"kimi", 384, 8, GateScoring::kSigmoid, GroupScore::kTop2Sum, 1, 1, true, true}};
  for (const auto& c : cases) {
    for (const int64_t tokens : {0, 1, 200, 1025}) {
      SCOPED_TRACE(testing::Message() << c.name << ", " << tokens << " tokens");
      OwnedTensor logits = Random({tokens, c.experts}, 2.0f);
      if (tokens > 100) {  // ties, and what is no number
        for (int64_t e = 0; e < c.experts; ++e)
          logits.data<float>()[7 * c.experts + e] = static_cast<float>(e % 3);
        logits.data<float>()[9 * c.experts + 1] = std::numeric_limits<float>::quiet_NaN();
        for (int64_t e = 0; e < c.experts; ++e) logits.data<float>()[11 * c.experts + e] = 1.0f;
      }
      const OwnedTensor bias = Random({c.experts}, 0.1f);
      const OwnedTensor live = Integers({tokens}, -1, 3);
      const OwnedTensor ids = Integers({tokens, c.top_k}, 7777, 7777);  // poisoned
      const OwnedTensor weights(DType::kF32, {tokens, c.top_k});
      OwnedTensor load(DType::kI64, {c.experts});
      std::fill_n(load.data<int64_t>(), c.experts, 3);
      const TensorView device_ids = gpu_.Up(ids), device_weights = gpu_.Up(weights),
                       device_load = gpu_.Up(load);
      GateParams params{.scoring = c.scoring,
                        .group_score = c.group_score,
                        .num_groups = c.groups,
                        .topk_groups = c.kept,
                        .normalize = c.normalize,
                        .scaling = 2.5f};
      params.logits = logits.view();
      if (c.bias) params.bias = bias.view();
      if (tokens > 100) params.live = live.view();
      params.expert_ids = ids.view();
      params.expert_weights = weights.view();
      params.expert_load = load.view();
      ASSERT_TRUE(cpu_->moe().Gate(params, {}).ok());
      params.logits = gpu_.Up(logits);
      if (c.bias) params.bias = gpu_.Up(bias);
      if (tokens > 100) params.live = gpu_.Up(live);
      params.expert_ids = device_ids;
      params.expert_weights = device_weights;
      params.expert_load = device_load;
      ASSERT_TRUE(gpu_.backend().moe().Gate(params, {}).ok());
      ExpectSame(ids, gpu_.Down(device_ids), 4);
      EXPECT_EQ(Difference(weights, gpu_.Down(device_weights)), 0);
      ExpectSame(load, gpu_.Down(device_load), 8);
    }
  }
}

// Pairs sorted at once (up to 4,096, top 32) and in chunks of
// 1,024.
TEST_F(CudaMoeTest, PermuteAndCombine) {
  const struct {
    int64_t tokens, experts, slots, top_k, hidden;
  } cases[] = {{0, 40, 30, 5, 300},    {1, 40, 30, 5, 300},    {33, 40, 30, 5, 301},
               {500, 40, 30, 5, 300},  {128, 256, 256, 8, 64}, {512, 256, 9, 8, 36},
               {513, 256, 256, 8, 5},  {0, 40, 0, 5, 8},       {20, 40, 0, 5, 8},
               {2000, 40, 0, 5, 8},    {60, 40, 40, 33, 16},   {1024, 3, 1, 1, 7},
               {4097, 300, 290, 1, 8}, {16384, 256, 32, 8, 12}};
  for (const auto& [tokens, experts, slots, top_k, hidden] : cases) {
    SCOPED_TRACE(testing::Message() << tokens << " tokens, top " << top_k << " of " << experts
                                    << ", " << slots << " slots, hidden " << hidden);
    OwnedTensor slot_of_expert = Integers({experts}, -1, -1), ids = Integers({tokens, top_k}, 0, 0);
    for (int32_t e = 0; e < slots; ++e) slot_of_expert.data<int32_t>()[(e * 7) % experts] = e;
    std::mt19937 random(Seed());
    for (int64_t t = 0; t < tokens; ++t) {
      const int32_t first = static_cast<int32_t>(random() % experts);
      for (int32_t k = 0; k < top_k; ++k)
        ids.data<int32_t>()[t * top_k + k] = t % 9 == 4 ? -1 : (first + 3 * k) % experts;
    }
    const OwnedTensor offsets(DType::kI32, {slots + 1});
    const OwnedTensor pairs = Integers({tokens, top_k}, 7777, 7777);  // poisoned
    const TensorView device_offsets = gpu_.Up(offsets), device_pairs = gpu_.Up(pairs);
    ASSERT_TRUE(cpu_->moe()
                    .Permute({ids.view(), slot_of_expert.view(), offsets.view(), pairs.view()}, {})
                    .ok());
    ASSERT_TRUE(
        gpu_.backend()
            .moe()
            .Permute({gpu_.Up(ids), gpu_.Up(slot_of_expert), device_offsets, device_pairs}, {})
            .ok());
    ExpectSame(offsets, gpu_.Down(device_offsets), 4);
    ExpectSame(pairs, gpu_.Down(device_pairs), 4);

    const OwnedTensor results = Random({tokens * top_k, hidden}), weights = Random({tokens, top_k}),
                      shared = Random({tokens, hidden});
    for (const bool with_shared : {false, true}) {
      const OwnedTensor out = Random({tokens, hidden});
      const TensorView device_out = gpu_.Up(out);
      MoeCombineParams params{results.view(), pairs.view(), weights.view(),
                              with_shared ? shared.view() : TensorView(), out.view()};
      ASSERT_TRUE(cpu_->moe().Combine(params, {}).ok());
      params = {gpu_.Up(results), device_pairs, gpu_.Up(weights),
                with_shared ? gpu_.Up(shared) : TensorView(), device_out};
      ASSERT_TRUE(gpu_.backend().moe().Combine(params, {}).ok());
      ExpectSame(out, gpu_.Down(device_out), 4);
    }
  }
}

TEST_F(CudaMoeTest, TooManySlotsAreAnErrorThatSaysHowMany) {
  const OwnedTensor ids = Integers({4, 2}, 0, 7), slots = Integers({8}, -1, -1);
  const auto permute = [&](int64_t count) {
    return gpu_.backend().moe().Permute(
        {gpu_.Up(ids), gpu_.Up(slots), gpu_.Up(OwnedTensor(DType::kI32, {count + 1})),
         gpu_.Up(OwnedTensor(DType::kI32, {4, 2}))},
        {});
  };
  EXPECT_TRUE(permute(1024).ok());
  EXPECT_EQ(permute(1025), absl::InvalidArgumentError("offsets: 1025 slots, at most 1024"));
}

// Products that take their rows from x give the bits of those whose rows were gathered before: the
// general kernel, and both types on the tensor cores.
TEST_F(CudaMoeTest, ProductsGatherTheirRows) {
  constexpr int64_t kExperts = 6, kSlots = 5, kTopK = 3, kHidden = 256, kColumns = 64;
  Device fast(Numerics::kFast);
  const struct {
    Device& device;
    DType dtype;
  } cases[] = {{gpu_, DType::kBF16}, {fast, DType::kBF16}, {fast, DType::kF8E4M3}};
  for (const auto& [device, dtype] : cases) {
    std::vector<WeightView> gates, ups;
    for (int64_t slot = 0; slot < kSlots; ++slot) {
      gates.push_back(device.Up(RandomWeight(dtype, kColumns, kHidden, Seed(), 0.1f)));
      ups.push_back(device.Up(RandomWeight(dtype, kColumns, kHidden, Seed(), 0.1f)));
    }
    for (const int64_t tokens : {0, 1, 33, 200}) {
      SCOPED_TRACE(testing::Message() << DTypeName(dtype) << ", " << tokens << " tokens");
      const int64_t rows = tokens * kTopK;
      OwnedTensor ids = Integers({tokens, kTopK}, 0, kExperts - 1);
      for (int64_t i = 0; i < rows; i += 10) ids.data<int32_t>()[i] = -1;
      const OwnedTensor host_x = Random({tokens, kHidden});
      const TensorView x = device.Up(host_x),
                       offsets = device.Up(OwnedTensor(DType::kI32, {kSlots + 1})),
                       pair_rows = device.Up(OwnedTensor(DType::kI32, {tokens, kTopK})),
                       wanted = device.Up(OwnedTensor(DType::kF32, {rows, kColumns})),
                       got = device.Up(OwnedTensor(DType::kF32, {rows, kColumns})),
                       slot_of_expert = device.Up(MakeI32({kExperts}, {3, -1, 0, 4, 1, 2}));
      Backend& backend = device.backend();
      ASSERT_TRUE(
          backend.moe().Permute({device.Up(ids), slot_of_expert, offsets, pair_rows}, {}).ok());
      const OwnedTensor host_pairs = device.Down(pair_rows);
      const OwnedTensor gathered(DType::kF32, {rows, kHidden});
      for (int64_t pair = 0; pair < rows; ++pair) {
        const int32_t row = host_pairs.data<int32_t>()[pair];
        if (row < 0) continue;
        std::copy_n(host_x.data<float>() + pair / kTopK * kHidden, kHidden,
                    gathered.data<float>() + row * kHidden);
      }
      const TensorView rows_x = device.Up(gathered);
      ASSERT_TRUE(
          backend.linear().GroupedGatedLinear({rows_x, gates, ups, offsets, wanted}, {}).ok());
      const absl::Status status =
          backend.linear().GroupedGatedLinear({x, gates, ups, offsets, got, pair_rows}, {});
      ASSERT_TRUE(status.ok()) << status;
      ExpectSame(device.Down(wanted), device.Down(got), 4);
    }
  }
}

}  // namespace
}  // namespace sluice
