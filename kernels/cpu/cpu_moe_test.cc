#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/ops_test_util.h"

namespace sluice {
namespace {

using testing::ElementsAre;

const CpuSetting kDefault = {DetectCpuIsa(), 1, Numerics::kExact};
constexpr float kInf = std::numeric_limits<float>::infinity();

absl::Status RunGate(const GateParams& params, const CpuSetting& setting = kDefault) {
  OpsUnderTest ops(setting);
  return MakeCpuMoeOps(ops.context())->Gate(params, StreamId{});
}

// Gate with its tensors.
struct GateCall {
  GateParams rule;  // tensors are filled in by Run
  OwnedTensor logits, bias, ids, weights;
  int64_t top_k = 1;

  absl::Status Run(const CpuSetting& setting = kDefault) {
    const int64_t tokens = logits.view().rows();
    ids = OwnedTensor(DType::kI32, {tokens, top_k});
    std::fill_n(ids.data<int32_t>(), tokens * top_k, 7777);
    weights = OwnedTensor(DType::kF32, {tokens, top_k});
    GateParams params = rule;
    params.logits = logits.view();
    if (bias.size() > 1) params.bias = bias.view();
    params.expert_ids = ids.view();
    params.expert_weights = weights.view();
    return RunGate(params, setting);
  }
  std::vector<int32_t> Ids(int64_t token = 0) const {
    return std::vector<int32_t>(ids.data<int32_t>() + token * top_k,
                                ids.data<int32_t>() + (token + 1) * top_k);
  }
  std::vector<float> Weights(int64_t token) const {
    return std::vector<float>(weights.data<float>() + token * top_k,
                              weights.data<float>() + (token + 1) * top_k);
  }
};

// The rule in double, by sorting.
void ReferenceGate(const GateCall& call, const float* logits, int64_t experts,
                   std::vector<int32_t>* ids, std::vector<double>* weights) {
  const GateParams& rule = call.rule;
  std::vector<double> s(experts), b(experts);
  double total = 0;
  const float max = *std::max_element(logits, logits + experts);
  for (int64_t e = 0; e < experts; ++e) total += std::exp(static_cast<double>(logits[e]) - max);
  for (int64_t e = 0; e < experts; ++e) {
    const double x = logits[e];
    s[e] =
        rule.scoring == GateScoring::kSigmoid ? 1 / (1 + std::exp(-x)) : std::exp(x - max) / total;
    b[e] = s[e] + (call.bias.size() > 1 ? call.bias.data<float>()[e] : 0.0f);
  }
  if (rule.group_score != GroupScore::kNone) {
    const int64_t size = experts / rule.num_groups;
    std::vector<std::pair<double, int>> groups;
    for (int g = 0; g < rule.num_groups; ++g) {
      std::vector<double> members(b.begin() + g * size, b.begin() + (g + 1) * size);
      std::sort(members.rbegin(), members.rend());
      const bool two = rule.group_score == GroupScore::kTop2Sum && size > 1;
      groups.push_back({-(two ? members[0] + members[1] : members[0]), g});
    }
    std::stable_sort(groups.begin(), groups.end());
    for (int g = rule.topk_groups; g < rule.num_groups; ++g) {
      for (int64_t i = 0; i < size; ++i) b[groups[g].second * size + i] = -kInf;
    }
  }
  ids->resize(experts);
  std::iota(ids->begin(), ids->end(), 0);
  std::stable_sort(ids->begin(), ids->end(), [&](int32_t i, int32_t j) { return b[i] > b[j]; });
  ids->resize(call.top_k);
  double sum = 0;
  for (const int32_t id : *ids) sum += s[id];
  weights->clear();
  for (const int32_t id : *ids) {
    weights->push_back(s[id] / (rule.normalize ? sum + 1e-20 : 1) * rule.scaling);
  }
}

TEST(Gate, MatchesDoubleForTheRulesOfEveryFamily) {
  struct Case {
    const char* name;
    int64_t experts;
    int64_t top_k;
    GateParams rule;
    bool bias;
  };
  const GateScoring sigmoid = GateScoring::kSigmoid, softmax = GateScoring::kSoftmax;
  const Case cases[] = {
      {"V3",
       256,
       8,
       {.scoring = sigmoid,
        .group_score = GroupScore::kTop2Sum,
        .num_groups = 8,
        .topk_groups = 4,
        .normalize = true,
        .scaling = 2.5f},
       true},
      {"tiny",
       32,
       4,
       {.scoring = sigmoid,
        .group_score = GroupScore::kTop2Sum,
        .num_groups = 8,
        .topk_groups = 4,
        .normalize = true,
        .scaling = 2.5f},
       true},
      {"Kimi-K2",
       384,
       8,
       {.scoring = sigmoid,
        .group_score = GroupScore::kTop2Sum,
        .num_groups = 1,
        .topk_groups = 1,
        .normalize = true,
        .scaling = 2.827f},
       true},
      {"V2",
       160,
       6,
       {.scoring = softmax,
        .group_score = GroupScore::kMax,
        .num_groups = 8,
        .topk_groups = 3,
        .normalize = false,
        .scaling = 16.0f},
       false},
      {"V2-Lite",
       64,
       6,
       {.scoring = softmax, .group_score = GroupScore::kNone, .normalize = false, .scaling = 1.0f},
       false},
      {"V2 normalised",
       64,
       6,
       {.scoring = softmax, .group_score = GroupScore::kNone, .normalize = true, .scaling = 1.0f},
       false},
      {"groups of one",
       16,
       3,
       {.scoring = sigmoid,
        .group_score = GroupScore::kTop2Sum,
        .num_groups = 16,
        .topk_groups = 3,
        .normalize = true},
       true},
      {"one expert",
       1,
       1,
       {.scoring = sigmoid, .group_score = GroupScore::kNone, .normalize = true},
       false},
      {"all chosen",
       7,
       7,
       {.scoring = softmax, .group_score = GroupScore::kNone, .normalize = true, .scaling = 3.0f},
       false},
  };
  for (const Case& c : cases) {
    for (const int64_t tokens : {0, 1, 5, 70}) {
      GateCall call;
      call.rule = c.rule;
      call.top_k = c.top_k;
      call.logits = RandomF32({tokens, c.experts}, 31, 1.5f);
      if (c.bias) call.bias = RandomF32({c.experts}, 32, 0.1f);
      ASSERT_TRUE(call.Run().ok()) << c.name;
      for (int64_t t = 0; t < tokens; ++t) {
        std::vector<int32_t> ids;
        std::vector<double> weights;
        ReferenceGate(call, call.logits.data<float>() + t * c.experts, c.experts, &ids, &weights);
        EXPECT_EQ(call.Ids(t), ids) << c.name << " token " << t;
        for (int64_t k = 0; k < c.top_k; ++k) {
          EXPECT_NEAR(call.weights.data<float>()[t * c.top_k + k], weights[k], 2e-6 * weights[k])
              << c.name;
        }
      }
      EXPECT_TRUE(call.ids.GuardsIntact() && call.weights.GuardsIntact());
    }
  }
}

TEST(GateTraps, BiasDecidesTheChoiceButNeverTheWeights) {
  GateCall call;
  call.logits = MakeF32({1, 4}, {3, 2, 1, 0});
  call.bias = MakeF32({4}, {0, 0, 5, 4});
  call.rule = {.group_score = GroupScore::kNone, .normalize = false, .scaling = 1};
  call.top_k = 2;
  ASSERT_TRUE(call.Run().ok());
  EXPECT_THAT(call.Ids(), ElementsAre(2, 3));
  EXPECT_NEAR(call.weights.data<float>()[0], 1 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_NEAR(call.weights.data<float>()[1], 0.5, 1e-6);
}

// Masking dropped groups with 0 instead would choose expert 3 here, whose group was dropped.
TEST(GateTraps, DroppedGroupsCountAsMinusInfinityEvenWhenKeptScoresAreNegative) {
  GateCall call;
  call.logits = MakeF32({1, 4}, {0, 0, 0, 0});
  call.bias = MakeF32({4}, {-0.6f, -0.7f, -0.8f, -0.9f});  // all biased scores are negative
  call.rule = {
      .group_score = GroupScore::kTop2Sum, .num_groups = 2, .topk_groups = 1, .normalize = true};
  call.top_k = 2;
  ASSERT_TRUE(call.Run().ok());
  EXPECT_THAT(call.Ids(), ElementsAre(0, 1));
}

TEST(GateTraps, TiesGoToTheLowestIndexForExpertsAndGroups) {
  GateCall call;
  call.logits = MakeF32({1, 8}, {1, 1, 1, 1, 1, 1, 1, 1});
  call.rule = {.group_score = GroupScore::kTop2Sum, .num_groups = 4, .topk_groups = 2};
  call.top_k = 3;
  ASSERT_TRUE(call.Run().ok());
  EXPECT_THAT(call.Ids(), ElementsAre(0, 1, 2));
  call.logits = MakeF32({1, 8}, {0, 2, 1, 2, 2, 0, 1, 2});
  call.rule.group_score = GroupScore::kNone;
  call.top_k = 5;
  ASSERT_TRUE(call.Run().ok());
  EXPECT_THAT(call.Ids(), ElementsAre(1, 3, 4, 7, 2));
}

TEST(GateTraps, GroupsGoByTheirTwoBestNotByTheBest) {
  GateCall call;
  call.logits = MakeF32({1, 4}, {3, -3, 1, 1});
  call.rule = {.group_score = GroupScore::kTop2Sum, .num_groups = 2, .topk_groups = 1};
  ASSERT_TRUE(call.Run().ok());
  EXPECT_THAT(call.Ids(), ElementsAre(2));
  call.rule.group_score = GroupScore::kMax;
  ASSERT_TRUE(call.Run().ok());
  EXPECT_THAT(call.Ids(), ElementsAre(0));
}

TEST(Gate, OddLogitsStillGiveDistinctExperts) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const GateScoring scoring : {GateScoring::kSigmoid, GateScoring::kSoftmax}) {
    GateCall call;
    call.logits =
        MakeF32({3, 4}, {nan, nan, nan, nan, -kInf, -kInf, -kInf, -kInf, 0, nan, 1, kInf});
    call.rule = {
        .scoring = scoring, .group_score = GroupScore::kTop2Sum, .num_groups = 2, .topk_groups = 2};
    call.top_k = 4;
    ASSERT_TRUE(call.Run().ok());
    for (int t = 0; t < 3; ++t) {
      EXPECT_THAT(call.Ids(t), testing::UnorderedElementsAre(0, 1, 2, 3));
    }
  }
}

// A broken router must not quietly choose among the experts it still knows.
TEST(Gate, AScoreThatIsNoNumberSpoilsTheToken) {
  GateCall call;
  call.logits = MakeF32({2, 4}, {0, std::numeric_limits<float>::quiet_NaN(), 1, 2, 0, 1, 2, 3});
  call.rule = {.scoring = GateScoring::kSigmoid,
               .group_score = GroupScore::kNone,
               .num_groups = 1,
               .topk_groups = 1};
  call.top_k = 2;
  ASSERT_TRUE(call.Run().ok());
  const std::vector<float> weights = call.Weights(0);
  EXPECT_TRUE(std::isnan(weights[0]) && std::isnan(weights[1]));
  EXPECT_FALSE(std::isnan(call.Weights(1)[0]));
}

TEST(Gate, AddsToTheLoadCountersAndIsTheSameEverywhere) {
  constexpr int64_t kTokens = 300, kExperts = 256, kTopK = 8;
  const OwnedTensor logits = RandomF32({kTokens, kExperts}, 9);
  const OwnedTensor bias = RandomF32({kExperts}, 10, 0.05f);
  std::vector<OwnedTensor> results;
  for (const CpuSetting& setting : AllSettings(Numerics::kExact)) {
    const OwnedTensor ids(DType::kI32, {kTokens, kTopK});
    const OwnedTensor weights(DType::kF32, {kTokens, kTopK});
    const OwnedTensor load(DType::kI64, {kExperts});
    std::fill_n(load.data<int64_t>(), kExperts, int64_t{1} << 40);
    ASSERT_TRUE(RunGate({.logits = logits.view(),
                         .bias = bias.view(),
                         .num_groups = 8,
                         .topk_groups = 4,
                         .scaling = 2.5f,
                         .expert_ids = ids.view(),
                         .expert_weights = weights.view(),
                         .expert_load = load.view()},
                        setting)
                    .ok());
    std::vector<int64_t> want(kExperts, int64_t{1} << 40);
    for (int64_t i = 0; i < kTokens * kTopK; ++i) ++want[ids.data<int32_t>()[i]];
    EXPECT_TRUE(std::equal(want.begin(), want.end(), load.data<int64_t>()));
    if (results.empty()) results = {ids, weights};
    EXPECT_TRUE(ids.SameBytes(results[0])) << Name(setting);
    EXPECT_TRUE(weights.SameBytes(results[1])) << Name(setting);
  }
}

// Also when what stands in its place is no number.
TEST(Gate, ATokenThatOnlyFillsTheBatchChoosesNoExpert) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  GateCall call;
  call.logits = MakeF32({3, 4}, {nan, nan, nan, nan, 0, 1, 2, 3, 3, 2, 1, 0});
  call.top_k = 2;
  const OwnedTensor live = MakeI32({3}, {-1, 0, -1});
  const OwnedTensor load(DType::kI64, {4});
  std::fill_n(load.data<int64_t>(), 4, 5);
  call.rule = {.live = live.view(), .group_score = GroupScore::kNone, .expert_load = load.view()};
  ASSERT_TRUE(call.Run().ok());
  for (const int64_t token : {0, 2}) {
    EXPECT_THAT(call.Ids(token), ElementsAre(-1, -1));
    EXPECT_THAT(call.Weights(token), ElementsAre(0.0f, 0.0f));
  }
  EXPECT_THAT(call.Ids(1), ElementsAre(3, 2));
  EXPECT_EQ(std::vector<int64_t>(load.data<int64_t>(), load.data<int64_t>() + 4),
            (std::vector<int64_t>{5, 5, 6, 6}));
  const OwnedTensor short_of_one = MakeI32({2}, {0, 0});
  call.rule.live = short_of_one.view();
  EXPECT_THAT(std::string(call.Run().message()), testing::HasSubstr("live"));
}

TEST(Gate, RefusesRulesThatCannotBeMet) {
  GateCall call;
  call.logits = RandomF32({1, 12}, 1);
  call.rule = {.num_groups = 5, .topk_groups = 1};
  EXPECT_THAT(std::string(call.Run().message()), testing::HasSubstr("1 of 5 groups of 12"));
  call.rule = {.num_groups = 4, .topk_groups = 5};
  EXPECT_FALSE(call.Run().ok());
  call.rule = {.num_groups = 4, .topk_groups = 1};
  call.top_k = 4;
  EXPECT_THAT(std::string(call.Run().message()),
              testing::HasSubstr("top_k 4 of 3 experts within reach"));
}

// What Permute should give, spelled out per slot.
void CheckPermutation(const OwnedTensor& ids, const std::vector<int32_t>& slot_of_expert,
                      const OwnedTensor& offsets, const OwnedTensor& pair_rows, int64_t slots) {
  const int64_t tokens = ids.view().rows(), top_k = ids.view().dims[1];
  int32_t row = 0;
  for (int64_t slot = 0; slot < slots; ++slot) {
    EXPECT_EQ(offsets.data<int32_t>()[slot], row);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t k = 0; k < top_k; ++k) {
        const int32_t expert = ids.data<int32_t>()[t * top_k + k];
        const int32_t own = expert < 0 ? -1 : slot_of_expert[expert];
        const int32_t pair_row = pair_rows.data<int32_t>()[t * top_k + k];
        if (own < 0) {
          EXPECT_EQ(pair_row, -1);
        }
        if (own != slot) continue;
        EXPECT_EQ(pair_row, row);
        ++row;
      }
    }
  }
  EXPECT_EQ(offsets.data<int32_t>()[slots], row);
}

TEST(Permute, SortsPairsBySlotInOrderOfToken) {
  constexpr int64_t kExperts = 12;
  // Everything here; a replica order; half of the experts elsewhere; nothing here.
  std::vector<std::vector<int32_t>> placements(4, std::vector<int32_t>(kExperts));
  for (int32_t e = 0; e < kExperts; ++e) {
    placements[0][e] = e;
    placements[1][e] = kExperts - 1 - e;
    placements[2][e] = e % 2 == 0 ? e / 2 : -1;
    placements[3][e] = -1;
  }
  for (const std::vector<int32_t>& placement : placements) {
    for (const int64_t tokens : {0, 1, 2, 33}) {
      for (const CpuSetting& setting :
           {kDefault, CpuSetting{CpuIsa::kGeneric, 3, Numerics::kFast}}) {
        const OwnedTensor ids(DType::kI32, {tokens, 3});
        std::mt19937 random(4);
        for (int64_t t = 0; t < tokens; ++t) {
          std::vector<int32_t> order(kExperts);
          std::iota(order.begin(), order.end(), 0);
          std::shuffle(order.begin(), order.end(), random);
          std::copy_n(order.begin(), 3, ids.data<int32_t>() + t * 3);
          if (t % 5 == 1) std::fill_n(ids.data<int32_t>() + t * 3, 3, -1);  // chose no expert
        }
        const OwnedTensor slots = MakeI32({kExperts}, placement);
        const OwnedTensor offsets(DType::kI32, {kExperts + 1});
        const OwnedTensor pair_rows(DType::kI32, {tokens, 3});
        OpsUnderTest ops(setting);
        const std::unique_ptr<MoeOps> moe = MakeCpuMoeOps(ops.context());
        ASSERT_TRUE(
            moe->Permute({ids.view(), slots.view(), offsets.view(), pair_rows.view()}, StreamId{})
                .ok());
        CheckPermutation(ids, placement, offsets, pair_rows, kExperts);
      }
    }
  }
}

TEST(Permute, RefusesExpertsAndSlotsThatDoNotExist) {
  const OwnedTensor offsets(DType::kI32, {3});
  const OwnedTensor pair_rows(DType::kI32, {1, 1});
  OpsUnderTest ops(kDefault);
  const std::unique_ptr<MoeOps> moe = MakeCpuMoeOps(ops.context());
  const auto run = [&](int32_t expert, int32_t slot) {
    const OwnedTensor ids = MakeI32({1, 1}, {expert});
    const OwnedTensor slots = MakeI32({2}, {0, slot});
    return std::string(
        moe->Permute({ids.view(), slots.view(), offsets.view(), pair_rows.view()}, StreamId{})
            .message());
  };
  EXPECT_EQ(run(1, 1), "");
  EXPECT_THAT(run(2, 1), testing::HasSubstr("expert_ids[0, 0] is 2"));
  EXPECT_THAT(run(-2, 1), testing::HasSubstr("expert_ids[0, 0] is -2"));
  EXPECT_THAT(run(1, 2), testing::HasSubstr("slot_of_expert[1] is 2"));
}

// The bits do not depend on where the rows lie, and the sum goes in the order of k.
TEST(Combine, AddsInOrderOfKWhereverTheRowsLie) {
  constexpr int64_t kTokens = 50, kTopK = 4;
  for (const int64_t hidden : {1, 16, 37, 256}) {
    const OwnedTensor expert_out = RandomF32({kTokens * kTopK, hidden}, 5);
    const OwnedTensor weights = RandomF32({kTokens, kTopK}, 6);
    const OwnedTensor shared = RandomF32({kTokens, hidden}, 7);
    const OwnedTensor before = RandomF32({kTokens, hidden}, 8);
    std::vector<OwnedTensor> results;
    std::mt19937 random(9);
    for (const CpuSetting& setting : AllSettings(Numerics::kExact)) {
      std::vector<int32_t> place(kTokens * kTopK);
      std::iota(place.begin(), place.end(), 0);
      std::shuffle(place.begin(), place.end(), random);
      const OwnedTensor rows(DType::kF32, {kTokens * kTopK, hidden});
      for (size_t i = 0; i < place.size(); ++i) {
        std::copy_n(expert_out.data<float>() + static_cast<int64_t>(i) * hidden, hidden,
                    rows.data<float>() + place[i] * hidden);
      }
      const OwnedTensor pair_rows = MakeI32({kTokens, kTopK}, place);
      pair_rows.data<int32_t>()[5] = -1;  // token 1, k 1 is elsewhere
      OwnedTensor out = before;
      OpsUnderTest ops(setting);
      ASSERT_TRUE(
          MakeCpuMoeOps(ops.context())
              ->Combine({rows.view(), pair_rows.view(), weights.view(), shared.view(), out.view()},
                        StreamId{})
              .ok());
      if (results.empty()) results = {out};
      EXPECT_TRUE(out.SameBytes(results[0])) << Name(setting);
    }
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t c = 0; c < hidden; ++c) {
        float sum = 0;
        for (int64_t k = 0; k < kTopK; ++k) {
          if (t == 1 && k == 1) continue;
          sum = std::fma(weights.data<float>()[t * kTopK + k],
                         expert_out.data<float>()[(t * kTopK + k) * hidden + c], sum);
        }
        const float want =
            before.data<float>()[t * hidden + c] + (sum + shared.data<float>()[t * hidden + c]);
        EXPECT_EQ(results[0].data<float>()[t * hidden + c], want);
      }
    }
  }
}

TEST(Combine, WorksWithoutASharedExpert) {
  const OwnedTensor rows = MakeF32({2, 2}, {1, 2, 3, 4});
  const OwnedTensor pair_rows = MakeI32({1, 2}, {1, 0});
  const OwnedTensor weights = MakeF32({1, 2}, {0.5f, 2});
  const OwnedTensor out = MakeF32({1, 2}, {10, 20});
  OpsUnderTest ops(kDefault);
  ASSERT_TRUE(MakeCpuMoeOps(ops.context())
                  ->Combine({.rows = rows.view(),
                             .pair_rows = pair_rows.view(),
                             .expert_weights = weights.view(),
                             .out = out.view()},
                            StreamId{})
                  .ok());
  EXPECT_EQ(out.data<float>()[0], 10 + 1.5f + 2);
  EXPECT_EQ(out.data<float>()[1], 20 + 2.0f + 4);
}

}  // namespace
}  // namespace sluice
