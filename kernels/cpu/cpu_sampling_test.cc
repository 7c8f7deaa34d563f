#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/counter_rng.h"
#include "kernels/cpu/ops_test_util.h"

namespace sluice {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// A call of Sample with its tensors.
struct Call {
  OwnedTensor logits;
  std::vector<SamplingRow> rows;
  std::vector<int32_t> bias_ids, banned_ids;
  std::vector<float> bias_values;
  OwnedTensor prompt_mask, output_counts;
  int64_t slots = 8;
  int64_t top_max = 5;
  OwnedTensor tokens, tokens_by_slot, logprobs, top_ids, top_logprobs, not_finite;

  SampleParams Params() {
    const int64_t count = logits.view().rows();
    tokens = OwnedTensor(DType::kI32, {count});
    tokens_by_slot = OwnedTensor(DType::kI32, {slots});
    logprobs = OwnedTensor(DType::kF32, {count});
    top_ids = OwnedTensor(DType::kI32, {count, top_max});
    top_logprobs = OwnedTensor(DType::kF32, {count, top_max});
    not_finite = OwnedTensor(DType::kU8, {count});
    SampleParams params;
    params.not_finite = not_finite.view();
    params.logits = logits.view();
    params.rows = rows.data();
    params.bias_ids =
        TensorView(bias_ids.data(), DType::kI32, {static_cast<int64_t>(bias_ids.size())});
    params.bias_values =
        TensorView(bias_values.data(), DType::kF32, {static_cast<int64_t>(bias_values.size())});
    params.banned_ids =
        TensorView(banned_ids.data(), DType::kI32, {static_cast<int64_t>(banned_ids.size())});
    if (prompt_mask.size() > 1) params.prompt_mask = prompt_mask.view();
    if (output_counts.size() > 1) params.output_counts = output_counts.view();
    params.tokens = tokens.view();
    params.tokens_by_slot = tokens_by_slot.view();
    params.logprobs = logprobs.view();
    params.top_ids = top_ids.view();
    params.top_logprobs = top_logprobs.view();
    return params;
  }
};

absl::Status RunCall(Call* call,
                     const CpuSetting& setting = {DetectCpuIsa(), 1, Numerics::kExact}) {
  OpsUnderTest ops(setting);
  const std::unique_ptr<SamplingOps> sampling = MakeCpuSamplingOps(ops.context());
  return sampling->Sample(call->Params(), StreamId{});
}

int32_t SampleOne(const std::vector<float>& logits, SamplingRow row,
                  std::vector<int32_t> banned = {}) {
  Call call;
  call.logits = MakeF32({1, static_cast<int64_t>(logits.size())}, logits);
  call.banned_ids = std::move(banned);
  row.banned_end = static_cast<int32_t>(call.banned_ids.size());
  call.rows = {row};
  EXPECT_TRUE(RunCall(&call).ok());
  EXPECT_EQ(call.tokens_by_slot.data<int32_t>()[row.slot], call.tokens.data<int32_t>()[0]);
  return call.tokens.data<int32_t>()[0];
}

// The tokens that the filters leave, by sorting everything, in double.
std::vector<int32_t> KeptTokens(const std::vector<double>& y, const SamplingRow& row) {
  std::vector<int32_t> order(y.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return y[a] > y[b]; });
  std::vector<int32_t> kept;
  const double best = std::exp(y[order[0]]);
  for (const int32_t id : order) {
    if (row.min_p > 0 && std::exp(y[id]) < row.min_p * best) continue;
    kept.push_back(id);
  }
  if (row.top_k > 0 && row.top_k < static_cast<int32_t>(kept.size())) kept.resize(row.top_k);
  if (row.top_p < 1) {
    double total = 0, sum = 0;
    for (const int32_t id : kept) total += std::exp(y[id]);
    size_t count = 0;
    while (count < kept.size() && (count == 0 || sum < row.top_p * total)) {
      sum += std::exp(y[kept[count++]]);
    }
    kept.resize(count);
  }
  return kept;
}

int32_t ReferenceSample(const std::vector<float>& logits, const SamplingRow& row) {
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> y;
  for (const float logit : logits) y.push_back((logit - max) / row.temperature);
  float best = -kInf;
  int32_t token = -1;
  for (const int32_t id : KeptTokens(y, row)) {
    const float score =
        static_cast<float>(y[id]) +
        GumbelNoise(row.seed, static_cast<uint32_t>(row.position), static_cast<uint32_t>(id));
    if (score > best || (score == best && id < token)) {
      best = score;
      token = id;
    }
  }
  return token;
}

std::vector<float> RandomLogits(int64_t vocab, uint32_t seed, float stddev) {
  const OwnedTensor tensor = RandomF32({vocab}, seed, stddev);
  return std::vector<float>(tensor.data<float>(), tensor.data<float>() + vocab);
}

TEST(SamplingGreedy, TakesTheLargestAtEverySizeAndPlace) {
  for (const int64_t vocab : {1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 1024, 129280}) {
    for (const int64_t place : {int64_t{0}, vocab / 3, vocab / 2, vocab - 1}) {
      std::vector<float> logits = RandomLogits(vocab, 1, 1.0f);
      logits[place] = 50;
      EXPECT_EQ(SampleOne(logits, {.temperature = 0}), place) << vocab;
    }
  }
}

TEST(SamplingGreedy, TieGoesToTheLowestId) {
  std::vector<float> logits(200, -1.0f);
  logits[77] = logits[78] = logits[199] = 3.0f;
  EXPECT_EQ(SampleOne(logits, {.temperature = 0}), 77);
  EXPECT_EQ(SampleOne(std::vector<float>(200, 0.0f), {.temperature = 0}), 0);
}

TEST(SamplingOddLogits, NaNCountsAsMinusInfinity) {
  EXPECT_EQ(SampleOne({kNaN, 1, kNaN, 2, kNaN}, {.temperature = 0}), 3);
  EXPECT_EQ(SampleOne({kNaN, -kInf, kNaN, -5, -kInf}, {.temperature = 0.7f}), 3);
  EXPECT_EQ(SampleOne({kNaN, -kInf, -2000, kNaN}, {.temperature = 1, .top_p = 0.5f, .top_k = 3}),
            2);
}

TEST(SamplingOddLogits, RowsThatAreNotFiniteAreReported) {
  Call call;
  call.logits = MakeF32({4, 3}, {1, 2, 3, 1, kNaN, 3, 1, 2, kInf, -kInf, 2, 3});
  call.rows.resize(4);
  ASSERT_TRUE(RunCall(&call).ok());
  EXPECT_THAT(
      std::vector<int>(call.not_finite.data<uint8_t>(), call.not_finite.data<uint8_t>() + 4),
      testing::ElementsAre(0, 1, 1, 1));
}

TEST(SamplingOddLogits, InfinityCountsAsLargest) {
  EXPECT_EQ(SampleOne({1, kInf, 3, kInf}, {.temperature = 0}), 1);
  EXPECT_EQ(SampleOne({1, 2, kInf}, {.temperature = 1}), 2);
  EXPECT_EQ(SampleOne({1, 2, kInf}, {.temperature = 1e-30f}), 2);
}

TEST(SamplingOddLogits, WithoutAnyFiniteLogitTheLowestTokenNotBanned) {
  for (const float temperature : {0.0f, 1.0f}) {
    EXPECT_EQ(SampleOne({-kInf, -kInf, -kInf}, {.temperature = temperature}), 0);
    EXPECT_EQ(SampleOne({kNaN, kNaN, -kInf}, {.temperature = temperature}, {1, 0}), 2);
    EXPECT_EQ(SampleOne({5, -kInf, kNaN}, {.temperature = temperature}, {0}), 1);
    EXPECT_EQ(SampleOne({5, 6, 7}, {.temperature = temperature}, {0, 1, 2}), 0);
  }
}

TEST(SamplingFilters, EdgesThatLeaveOneToken) {
  std::vector<float> logits = RandomLogits(500, 3, 0.1f);
  logits[123] = 0.6f;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(SampleOne(logits, {.top_k = 1, .seed = seed}), 123);
    EXPECT_EQ(SampleOne(logits, {.top_p = 0.0f, .seed = seed}), 123);
    EXPECT_EQ(SampleOne(logits, {.top_p = 1e-9f, .seed = seed}), 123);
    EXPECT_EQ(SampleOne(logits, {.min_p = 1.0f, .seed = seed}), 123);
    EXPECT_EQ(SampleOne(logits, {.temperature = 1e-6f, .seed = seed}), 123);
  }
}

// All probabilities equal: which tokens stay is decided by id alone.
TEST(SamplingFilters, TiesStayByLowestId) {
  const std::vector<float> logits(1000, 1.5f);
  struct Case {
    SamplingRow row;
    int kept;
  };
  const Case cases[] = {
      {{.top_k = 3}, 3},
      {{.top_p = 0.0035f}, 4},
      {{.top_p = 0.5f}, 500},
      {{.top_p = 0.5f, .top_k = 10}, 5},
      {{.min_p = 1.0f}, 1000},
      {{.top_k = 1000}, 1000},
      {{.top_k = 999}, 999},
      {{.top_p = 0.25f, .min_p = 0.9f, .top_k = 16}, 4},
      {{.top_k = 2000000000}, 1000},
  };
  for (const Case& c : cases) {
    std::set<int32_t> seen;
    for (uint64_t seed = 0; seed < 200; ++seed) {
      SamplingRow row = c.row;
      row.seed = seed;
      const int32_t token = SampleOne(logits, row);
      EXPECT_LT(token, c.kept);
      seen.insert(token);
    }
    if (c.kept <= 10) {
      EXPECT_EQ(static_cast<int>(seen.size()), c.kept);
    }
  }
}

// Tokens equal those of a plain reference that sorts, sums in double and draws the noise one by
// one.
TEST(Sampling, EqualsThePlainReference) {
  const SamplingRow shapes[] = {
      {},
      {.temperature = 0.3f},
      {.temperature = 5.0f},
      {.top_p = 0.9f},
      {.top_p = 0.3f},
      {.top_p = 0.9999f},
      {.min_p = 0.05f},
      {.top_k = 1},
      {.top_k = 7},
      {.top_k = 300},
      {.temperature = 0.8f, .top_p = 0.95f, .min_p = 0.01f, .top_k = 40},
      {.temperature = 2.0f, .top_p = 0.7f, .top_k = 700},
      {.temperature = 1.0f, .top_p = 0.5f, .min_p = 0.2f},
  };
  for (const int64_t vocab : {1, 3, 64, 100, 1024, 5003}) {
    for (const float stddev : {0.01f, 1.0f, 8.0f}) {
      for (uint32_t seed = 0; seed < 6; ++seed) {
        const std::vector<float> logits = RandomLogits(vocab, seed * 7 + 1, stddev);
        for (SamplingRow row : shapes) {
          row.seed = 0x9876543200000000ull * seed + seed;
          row.position = static_cast<int32_t>(seed * 1000);
          EXPECT_EQ(SampleOne(logits, row), ReferenceSample(logits, row))
              << "vocab " << vocab << " stddev " << stddev << " seed " << seed << " top_k "
              << row.top_k << " top_p " << row.top_p << " min_p " << row.min_p;
        }
      }
    }
  }
}

// Chi-square of 20,000 draws against the filtered softmax. The 99.99 % quantile of chi-square with
// k degrees of freedom is below k + 4 sqrt(2 k) + 8; seeds are fixed, so this cannot flake.
TEST(Sampling, FollowsTheFilteredSoftmax) {
  constexpr int kVocab = 50;
  constexpr int kDraws = 20000;
  const std::vector<float> logits = RandomLogits(kVocab, 11, 1.5f);
  const SamplingRow shapes[] = {
      {}, {.temperature = 0.7f}, {.top_p = 0.8f}, {.top_k = 5}, {.min_p = 0.1f}};
  for (const SamplingRow& shape : shapes) {
    std::vector<double> y;
    for (const float logit : logits) y.push_back(logit / shape.temperature);
    const std::vector<int32_t> kept = KeptTokens(y, shape);
    double total = 0;
    for (const int32_t id : kept) total += std::exp(y[id]);

    Call call;
    call.logits = OwnedTensor(DType::kF32, {kDraws, kVocab});
    for (int i = 0; i < kDraws; ++i) {
      std::copy(logits.begin(), logits.end(), call.logits.data<float>() + i * kVocab);
      SamplingRow row = shape;
      row.seed = 42 + static_cast<uint64_t>(i) / 100;  // positions vary as well as seeds
      row.position = i % 100;
      call.rows.push_back(row);
    }
    ASSERT_TRUE(RunCall(&call).ok());
    std::vector<int> counts(kVocab, 0);
    for (int i = 0; i < kDraws; ++i) ++counts[call.tokens.data<int32_t>()[i]];
    double chi = 0;
    int inside = 0;
    for (const int32_t id : kept) {
      const double expected = kDraws * std::exp(y[id]) / total;
      chi += (counts[id] - expected) * (counts[id] - expected) / expected;
      inside += counts[id];
    }
    EXPECT_EQ(inside, kDraws);
    const double k = static_cast<double>(kept.size()) - 1;
    EXPECT_LT(chi, k + 4 * std::sqrt(2 * k) + 8);
  }
}

TEST(Sampling, BiasThenBanThenPenalties) {
  constexpr int64_t kVocab = 300;
  constexpr int64_t kSlots = 8;
  Call call;
  call.logits = RandomF32({2, kVocab}, 5, 3.0f);
  std::vector<float> want(call.logits.data<float>() + kVocab,
                          call.logits.data<float>() + 2 * kVocab);
  call.bias_ids = {9, 4, 250, 4};
  call.bias_values = {-100, 2.5f, 1, 0.25f};
  call.banned_ids = {1, 2, 250};
  call.prompt_mask = OwnedTensor(DType::kU8, {kSlots, kVocab});
  call.output_counts = OwnedTensor(DType::kI32, {kSlots, kVocab});
  std::mt19937 random(17);
  for (int64_t i = 0; i < kSlots * kVocab; ++i) {
    call.prompt_mask.data<uint8_t>()[i] = random() % 3 == 0;
    call.output_counts.data<int32_t>()[i] = random() % 4 == 0 ? static_cast<int>(random() % 5) : 0;
  }
  SamplingRow row = {.temperature = 0.9f,
                     .top_p = 0.95f,
                     .repetition_penalty = 1.3f,
                     .presence_penalty = 0.4f,
                     .frequency_penalty = -0.2f,
                     .seed = 99,
                     .position = 4,
                     .slot = 6,
                     .bias_begin = 1,
                     .bias_end = 4,
                     .banned_begin = 1,
                     .banned_end = 3,
                     .counts_tokens = true};
  want[4] = want[4] + 2.5f + 0.25f;
  want[250] = -kInf;
  want[2] = -kInf;
  const uint8_t* mask = call.prompt_mask.data<uint8_t>() + 6 * kVocab;
  const int32_t* counts = call.output_counts.data<int32_t>() + 6 * kVocab;
  for (int64_t i = 0; i < kVocab; ++i) {
    if (mask[i] != 0 || counts[i] > 0) {
      want[i] = want[i] > 0 ? want[i] / 1.3f : want[i] * 1.3f;
    }
    want[i] -= -0.2f * static_cast<float>(counts[i]);
    if (counts[i] > 0) want[i] -= 0.4f;
  }
  const std::vector<int32_t> counts_before(counts, counts + kVocab);
  call.rows = {{.temperature = 0, .slot = 3}, row};
  for (row.position = 0; row.position < 40; ++row.position) {
    call.rows[1] = row;
    std::copy(counts_before.begin(), counts_before.end(),
              call.output_counts.data<int32_t>() + 6 * kVocab);
    ASSERT_TRUE(RunCall(&call).ok());
    const int32_t token = call.tokens.data<int32_t>()[1];
    EXPECT_EQ(token, ReferenceSample(want, row)) << row.position;
    for (int64_t i = 0; i < kVocab; ++i) EXPECT_EQ(counts[i], counts_before[i] + (i == token));
  }
}

TEST(Sampling, LogprobsAreOfTheRawLogits) {
  for (const int64_t vocab : {1, 6, 100, 4097}) {
    Call call;
    call.logits = RandomF32({1, vocab}, 21, 4.0f);
    std::vector<float> logits(call.logits.data<float>(), call.logits.data<float>() + vocab);
    const int32_t wanted = static_cast<int32_t>(std::min<int64_t>(vocab, 5));
    call.banned_ids = {0};
    call.rows = {{.temperature = 0.5f,
                  .top_k = 3,
                  .seed = 3,
                  .banned_begin = 0,
                  .banned_end = vocab > 1,
                  .num_logprobs = wanted}};
    ASSERT_TRUE(RunCall(&call).ok());
    double total = 0;
    for (const float logit : logits) total += std::exp(static_cast<double>(logit));
    const int32_t token = call.tokens.data<int32_t>()[0];
    EXPECT_NEAR(call.logprobs.data<float>()[0], logits[token] - std::log(total), 4e-6);
    std::vector<int32_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    for (int32_t i = 0; i < wanted; ++i) {
      EXPECT_EQ(call.top_ids.data<int32_t>()[i], order[i]);
      EXPECT_NEAR(call.top_logprobs.data<float>()[i], logits[order[i]] - std::log(total), 4e-6);
    }
    for (int64_t i = wanted; i < call.top_max; ++i) EXPECT_EQ(call.top_ids.data<int32_t>()[i], -1);
  }
}

TEST(Sampling, TopLogprobsTieToTheLowestId) {
  Call call;
  call.logits = MakeF32({1, 8}, {0, 2, 1, 2, 1, kNaN, 2, 1});
  call.rows = {{.temperature = 0, .num_logprobs = 5}};
  ASSERT_TRUE(RunCall(&call).ok());
  const int32_t* ids = call.top_ids.data<int32_t>();
  EXPECT_THAT(std::vector<int32_t>(ids, ids + 5), testing::ElementsAre(1, 3, 6, 2, 4));
}

TEST(Sampling, DependsNeitherOnTheBatchNorOnTheMachine) {
  constexpr int64_t kVocab = 3001;
  constexpr int kRows = 8;  // one for each slot
  Call base;
  base.logits = RandomF32({kRows, kVocab}, 8, 2.0f);
  for (int i = 0; i < kRows; ++i) {
    base.rows.push_back({.temperature = i == 0 ? 0.0f : 0.4f * static_cast<float>(i),
                         .top_p = i % 2 == 0 ? 0.9f : 1.0f,
                         .min_p = i % 5 == 4 ? 0.02f : 0.0f,
                         .top_k = i % 3 == 0 ? 50 : 0,
                         .seed = static_cast<uint64_t>(i) << 30,
                         .position = i,
                         .slot = i,
                         .num_logprobs = i % 4 - 1});
  }
  Call alone_first = base;
  ASSERT_TRUE(RunCall(&alone_first).ok());
  for (int i = 0; i < kRows; ++i) {
    Call alone;
    alone.logits =
        MakeF32({1, kVocab}, std::vector<float>(base.logits.data<float>() + i * kVocab,
                                                base.logits.data<float>() + (i + 1) * kVocab));
    alone.rows = {base.rows[i]};
    ASSERT_TRUE(RunCall(&alone, {CpuIsa::kGeneric, 1, Numerics::kExact}).ok());
    EXPECT_EQ(alone.tokens.data<int32_t>()[0], alone_first.tokens.data<int32_t>()[i]);
  }
  for (const CpuSetting& setting : AllSettings(Numerics::kExact)) {
    Call again = base;
    ASSERT_TRUE(RunCall(&again, setting).ok());
    EXPECT_TRUE(again.tokens.SameBytes(alone_first.tokens)) << Name(setting);
    EXPECT_TRUE(again.logprobs.SameBytes(alone_first.logprobs)) << Name(setting);
    EXPECT_TRUE(again.top_ids.SameBytes(alone_first.top_ids)) << Name(setting);
    EXPECT_TRUE(again.top_logprobs.SameBytes(alone_first.top_logprobs)) << Name(setting);
  }
}

TEST(Sampling, RefusesWhatDoesNotFit) {
  struct Case {
    const char* want;
    std::function<void(Call*)> damage;
  };
  const Case cases[] = {
      {"slot 8 of 8", [](Call* c) { c->rows[0].slot = 8; }},
      {"slot -1 of 8", [](Call* c) { c->rows[0].slot = -1; }},
      {"bias [0, 1) of 0", [](Call* c) { c->rows[0].bias_end = 1; }},
      {"banned 30 is outside",
       [](Call* c) {
         c->banned_ids = {30};
         c->rows[0].banned_end = 1;
       }},
      {"without prompt_mask", [](Call* c) { c->rows[0].presence_penalty = 1; }},
      {"without prompt_mask", [](Call* c) { c->rows[0].counts_tokens = true; }},
      {"6 logprobs, room for 5", [](Call* c) { c->rows[0].num_logprobs = 6; }},
  };
  for (const Case& c : cases) {
    Call call;
    call.logits = RandomF32({1, 30}, 1);
    call.rows = {{}};
    c.damage(&call);
    const absl::Status status = RunCall(&call);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(c.want));
  }
}

TEST(Sampling, NoRowsIsFine) {
  Call call;
  call.logits = OwnedTensor(DType::kF32, {0, 30});
  EXPECT_TRUE(RunCall(&call).ok());
}

}  // namespace
}  // namespace sluice
