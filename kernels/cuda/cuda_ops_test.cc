// Embeddings, norms, sampling and refusals on the GPU against the CPU backend.
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/cuda/cuda_test_util.h"

namespace sluice {
namespace {

TEST_F(CudaOpsTest, EmbeddingsNormsAndRows) {
  for (const DType dtype : kWeightTypes) {
    const OwnedWeight table = RandomWeight(dtype, 300, 513, Seed(), 1.0f);
    const OwnedTensor ids = MakeI32({5}, {299, 0, -3, 17, -1});
    const OwnedTensor by_slot = MakeI32({3}, {42, 7, 299});
    const OwnedTensor out(DType::kF32, {5, 513}), resolved(DType::kI32, {5});
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
  for (const int64_t width : {1, 31, 256, 257, 7168}) {
    for (const int64_t rows : {0, 1, 33}) {
      const OwnedTensor x = Random({rows, width}), weight = Random({width});
      const OwnedTensor out(DType::kF32, {rows, width});
      const TensorView device_out = gpu_.Up(out);
      ASSERT_TRUE(
          cpu_->elementwise().RmsNorm({x.view(), weight.view(), 1e-6f, out.view()}, {}).ok());
      ASSERT_TRUE(gpu_.backend()
                      .elementwise()
                      .RmsNorm({gpu_.Up(x), gpu_.Up(weight), 1e-6f, device_out}, {})
                      .ok());
      EXPECT_LT(Difference(out, gpu_.Down(device_out)), 1e-5) << rows << " x " << width;
    }
  }
  const OwnedTensor x = Random({9, 300}), rows = MakeI32({4}, {8, 0, 3, 3});
  const OwnedTensor out(DType::kF32, {4, 300});
  const TensorView device_out = gpu_.Up(out);
  ASSERT_TRUE(cpu_->elementwise().GatherRows({x.view(), rows.view(), out.view()}, {}).ok());
  ASSERT_TRUE(
      gpu_.backend().elementwise().GatherRows({gpu_.Up(x), gpu_.Up(rows), device_out}, {}).ok());
  ExpectSame(out, gpu_.Down(device_out), 4);
}

TEST_F(CudaOpsTest, SamplingGivesTheCpusTokens) {
  for (const int64_t vocab : {1, 100, 1024, 129280}) {
    const int64_t count = 64, slots = 64;
    OwnedTensor logits = Random({count, vocab}, 3.0f);
    float* raw = logits.data<float>();
    // Few distinct values, so that ties meet every cut; then what is no number.
    for (int64_t row = 32; row < 44; ++row) {
      for (int64_t i = 0; i < vocab; ++i) raw[row * vocab + i] = std::round(raw[row * vocab + i]);
    }
    raw[44 * vocab] = std::numeric_limits<float>::quiet_NaN();
    raw[45 * vocab + vocab / 2] = std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < vocab; ++i)
      raw[46 * vocab + i] = -std::numeric_limits<float>::infinity();

    std::mt19937 random(Seed());
    const auto pick = [&](std::initializer_list<float> values) {
      return values.begin()[random() % values.size()];
    };
    std::vector<SamplingRow> sampling(count);
    OwnedTensor bias_ids = Integers({128}, 0, static_cast<int32_t>(vocab) - 1),
                banned = Integers({128}, 0, static_cast<int32_t>(vocab) - 1);
    OwnedTensor bias_values = Random({128}, 5.0f);
    for (int64_t row = 0; row < count; ++row) {
      SamplingRow& s = sampling[row];
      s.temperature = pick({0.0f, 0.3f, 1.0f, 1.0f, 2.0f});
      s.top_p = pick({1.0f, 0.95f, 0.5f, 0.01f});
      s.min_p = pick({0.0f, 0.0f, 0.1f, 0.9f});
      s.top_k = static_cast<int32_t>(pick({0, 0, 1, 50, 200000}));
      s.repetition_penalty = pick({1.0f, 1.3f});
      s.presence_penalty = pick({0.0f, 0.5f});
      s.frequency_penalty = pick({0.0f, 0.25f});
      s.seed = random();
      s.position = static_cast<int32_t>(row);
      s.slot = static_cast<int32_t>((row * 5 + 3) % slots);
      s.bias_begin = static_cast<int32_t>(row);
      s.bias_end = s.bias_begin + static_cast<int32_t>(row % 3);
      s.banned_begin = static_cast<int32_t>(row);
      s.banned_end = s.banned_begin + static_cast<int32_t>(row % 2);
      s.num_logprobs = static_cast<int32_t>(
          std::min<int64_t>(static_cast<int64_t>(pick({-1, 0, 1, 20})), vocab));
      s.counts_tokens =
          s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f;
    }
    OwnedTensor mask(DType::kU8, {slots, vocab}), counts = Integers({slots, vocab}, -8, 2);
    for (int64_t i = 0; i < mask.size(); ++i) {
      mask.data<uint8_t>()[i] = random() % 4 == 0;
      counts.data<int32_t>()[i] = std::max(0, counts.data<int32_t>()[i]);
    }
    const OwnedTensor tokens(DType::kI32, {count}), by_slot(DType::kI32, {slots});
    OwnedTensor logprobs(DType::kF32, {count}), top_ids(DType::kI32, {count, 20}),
        top(DType::kF32, {count, 20}), odd(DType::kU8, {count});
    const TensorView device_logits = gpu_.Up(logits);
    SampleParams device{device_logits,        gpu_.Up(sampling), gpu_.Up(bias_ids),
                        gpu_.Up(bias_values), gpu_.Up(banned),   gpu_.Up(mask),
                        gpu_.Up(counts),      gpu_.Up(tokens),   gpu_.Up(by_slot),
                        gpu_.Up(logprobs),    gpu_.Up(top_ids),  gpu_.Up(top),
                        gpu_.Up(odd)};
    const SampleParams host{logits.view(),  sampling.data(), bias_ids.view(), bias_values.view(),
                            banned.view(),  mask.view(),     counts.view(),   tokens.view(),
                            by_slot.view(), logprobs.view(), top_ids.view(),  top.view(),
                            odd.view()};
    ASSERT_TRUE(cpu_->sampling().Sample(host, {}).ok());
    ASSERT_TRUE(gpu_.backend().sampling().Sample(device, {}).ok());
    const OwnedTensor got = gpu_.Down(device.tokens);
    for (int64_t row = 0; row < count; ++row) {
      const SamplingRow& s = sampling[row];
      EXPECT_EQ(tokens.data<int32_t>()[row], got.data<int32_t>()[row])
          << "vocab " << vocab << " row " << row << " temperature " << s.temperature << " top_p "
          << s.top_p << " top_k " << s.top_k << " min_p " << s.min_p;
    }
    ExpectSame(by_slot, gpu_.Down(device.tokens_by_slot), 4);
    ExpectSame(counts, gpu_.Down(device.output_counts), 4);
    ExpectSame(odd, gpu_.Down(device.not_finite), 1);
    ExpectSame(top_ids, gpu_.Down(device.top_ids), 4);
    ExpectSame(top, gpu_.Down(device.top_logprobs), 4);
    ExpectSame(logprobs, gpu_.Down(device.logprobs), 4);
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
