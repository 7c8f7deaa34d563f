// Sampling on the GPU: tokens and logprobs are bit for bit the CPU's.
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_test_util.h"

namespace sluice {
namespace {

class CudaSamplingTest : public CudaOpsTest {
 protected:
  // Both backends on the same rows; every output is compared. `top_max` logprobs a row have room.
  // Device logits lie `gap` elements apart.
  void Compare(const OwnedTensor& logits, const std::vector<SamplingRow>& sampling,
               const OwnedTensor& bias_ids, const OwnedTensor& bias_values,
               const OwnedTensor& banned, int64_t top_max, int64_t gap = 0) {
    const int64_t count = logits.view().rows(), vocab = logits.view().dims[1], slots = count;
    OwnedTensor mask(DType::kU8, {slots, vocab}), counts = Integers({slots, vocab}, -8, 2);
    std::mt19937 random(Seed());
    for (int64_t i = 0; i < mask.size(); ++i) {
      mask.data<uint8_t>()[i] = random() % 4 == 0;
      counts.data<int32_t>()[i] = std::max(0, counts.data<int32_t>()[i]);
    }
    const OwnedTensor tokens(DType::kI32, {count}), by_slot(DType::kI32, {slots});
    const OwnedTensor logprobs(DType::kF32, {count}), top_ids(DType::kI32, {count, top_max}),
        top(DType::kF32, {count, top_max}), odd(DType::kU8, {count});
    OwnedTensor spread(DType::kF32, {count, vocab + gap});
    for (int64_t row = 0; row < count; ++row) {
      std::copy_n(logits.data<float>() + row * vocab, vocab,
                  spread.data<float>() + row * (vocab + gap));
    }
    TensorView device_logits = gpu_.Up(spread);
    device_logits.dims[1] = vocab;
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
      const SamplingRow& s = sampling[static_cast<size_t>(row)];
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
};

// One block a row, several, slices whose last is short, rows that no vector can be read from.
TEST_F(CudaSamplingTest, GivesTheCpusTokens) {
  for (const int64_t vocab : {1, 3, 100, 1024, 4097, 32769, 129280}) {
    SCOPED_TRACE(vocab);
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
    Compare(logits, sampling, bias_ids, bias_values, banned, 20, vocab % 2);
  }
}

// Whatever cut is made goes through ties: of all tokens, of half of them, at either end.
TEST_F(CudaSamplingTest, CutsThroughTies) {
  const int64_t vocab = 20000, count = 48;
  const OwnedTensor logits(DType::kF32, {count, vocab});
  std::vector<SamplingRow> sampling(count);
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t i = 0; i < vocab; ++i) {
      const float values[] = {1.0f, static_cast<float>(i % 2), i < vocab / 2 ? 3.0f : 3.0f - 1e-6f,
                              i == 777 ? 40.0f : -60.0f};
      logits.data<float>()[row * vocab + i] = values[row % 4];
    }
    SamplingRow& s = sampling[static_cast<size_t>(row)];
    s.top_k = row / 4 % 3 == 0 ? 0 : static_cast<int32_t>(row * 431 % vocab);
    s.top_p = row / 12 % 2 == 0 ? 1.0f : 0.37f;
    s.min_p = row >= 24 ? 0.3f : 0.0f;
    s.seed = static_cast<uint64_t>(Seed()) << 20;
    s.slot = static_cast<int32_t>(row);
    s.position = 3;
  }
  const OwnedTensor none = MakeI32({1}, {0}), no_bias = MakeF32({1}, {0});
  Compare(logits, sampling, none, no_bias, none, 1);
}

// More logprobs than are put in order at once; logits that are none, and rows without any.
TEST_F(CudaSamplingTest, ManyLogprobs) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const int64_t vocab = 9000, count = 6, top_max = 700;
  const OwnedTensor logits = Random({count, vocab}, 3.0f);
  std::vector<SamplingRow> sampling(count);
  for (int64_t row = 0; row < count; ++row) {
    float* values = logits.data<float>() + row * vocab;
    for (int64_t i = 0; i < vocab; ++i) {
      if (row == 1) values[i] = std::round(values[i]);
      if (row == 2 && i % 100 != 5) values[i] = -kInf;
      if (row == 3) values[i] = -kInf;
      if (row == 4 && i % 7 == 0) values[i] = i % 2 == 0 ? std::nanf("") : kInf;
    }
    sampling[static_cast<size_t>(row)].slot = static_cast<int32_t>(row);
    sampling[static_cast<size_t>(row)].num_logprobs = row == 5 ? 256 : 700;
  }
  const OwnedTensor none = MakeI32({1}, {0}), no_bias = MakeF32({1}, {0});
  Compare(logits, sampling, none, no_bias, none, top_max);
}

// Every token banned, or all but one; temperatures at which only the best, or all alike, are left.
TEST_F(CudaSamplingTest, BansAndTemperatures) {
  const int64_t vocab = 5000, count = 8;
  const OwnedTensor logits = Random({count, vocab}, 3.0f), banned(DType::kI32, {vocab});
  for (int64_t i = 0; i < vocab; ++i) {
    banned.data<int32_t>()[i] = static_cast<int32_t>((i * 7 + 11) % vocab);
  }
  std::vector<SamplingRow> sampling(count);
  const float temperatures[] = {1e-30f, 1e-6f, 1e6f, 1e30f};
  for (int64_t row = 0; row < count; ++row) {
    SamplingRow& s = sampling[static_cast<size_t>(row)];
    s.slot = static_cast<int32_t>(row);
    s.temperature = temperatures[row % 4];
    s.top_p = 0.9f;
    if (row >= 4) s.banned_end = static_cast<int32_t>(vocab - (row < 6 ? 0 : 1));
    if (row == 5) s.temperature = 0;
  }
  const OwnedTensor none = MakeI32({1}, {0}), no_bias = MakeF32({1}, {0});
  Compare(logits, sampling, none, no_bias, banned, 1);
}

// A largest logit of minus zero, alone and beside one of plus zero.
TEST_F(CudaSamplingTest, ZerosOfEitherSign) {
  for (const std::vector<float>& row : {std::vector<float>{-0.0f},
                                        {0.0f, -0.0f},
                                        {-0.0f, 0.0f},
                                        {-0.0f, -60.0f, -0.0f, 0.0f, -0.0f}}) {
    const int64_t vocab = static_cast<int64_t>(row.size());
    std::vector<SamplingRow> sampling(1);
    sampling[0].temperature = 0;
    sampling[0].num_logprobs = static_cast<int32_t>(vocab);
    const OwnedTensor none = MakeI32({1}, {0}), no_bias = MakeF32({1}, {0});
    Compare(MakeF32({1, vocab}, row), sampling, none, no_bias, none, vocab);
  }
}

TEST_F(CudaSamplingTest, RefusesAVocabularyThatNoClusterHolds) {
  SampleParams params;
  params.logits = TensorView(nullptr, DType::kF32, {0, 500000});
  params.tokens = TensorView(nullptr, DType::kI32, {0});
  params.tokens_by_slot = TensorView(nullptr, DType::kI32, {0});
  const absl::Status status = gpu_.backend().sampling().Sample(params, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("500000"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace sluice
