// The choice of experts where random weights show little: ties, negative scores, bias and weights.
// Expected values are worked out by hand from DeepSeek's formula.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

namespace sluice::conformance {
namespace {

float Logit(double probability) {
  return static_cast<float>(std::log(probability / (1 - probability)));
}

struct Case {
  std::string name;
  std::vector<float> logits;
  std::vector<float> bias;  // empty: none
  GateParams params;        // tensors are filled in by the test
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

std::vector<Case> Cases() {
  GateParams one_group;  // sigmoid, normalised
  GateParams two_of_four = one_group;
  two_of_four.num_groups = 4;
  two_of_four.topk_groups = 2;
  GateParams raw = one_group;
  raw.normalize = false;
  GateParams scaled = one_group;
  scaled.scaling = 2.5f;
  GateParams raw_scaled = raw;
  raw_scaled.scaling = 2.5f;
  GateParams greedy;
  greedy.scoring = GateScoring::kSoftmax;
  greedy.group_score = GroupScore::kNone;
  greedy.normalize = false;
  GateParams by_max = greedy;
  by_max.group_score = GroupScore::kMax;
  by_max.num_groups = 2;

  const float half = 0.0f, high = Logit(0.8), low = Logit(0.2);
  const float ln2 = std::log(2.0f), ln3 = std::log(3.0f);
  std::vector<Case> cases;
  cases.push_back({"EqualScoresLowestIndexFirst",
                   {half, half, half, half, half, half, half, half},
                   {},
                   raw,
                   {0, 1, 2},
                   {0.5f, 0.5f, 0.5f}});
  cases.push_back({"TieBehindAWinner",
                   {half, half, half, high, half, half, half, half},
                   {},
                   raw,
                   {3, 0, 1},
                   {0.8f, 0.5f, 0.5f}});
  cases.push_back({"EqualGroupsLowestIndexFirst",
                   {half, half, half, half, half, half, half, half},
                   {},
                   two_of_four,
                   {0, 1, 2},
                   {1 / 3.0f, 1 / 3.0f, 1 / 3.0f}});
  cases.push_back({"BiasChoosesButDoesNotWeigh",
                   {half, high, low, low, low, low, low, low},
                   {0, 0, 0, 0, 0, 0, 0, 0.7f},
                   raw,
                   {7, 1, 0},
                   {0.2f, 0.8f, 0.5f}});
  // Every biased score is negative; experts of dropped groups must not win with a 0 in place of
  // minus infinity. Groups {2,3} and {6,7} have the best sums.
  cases.push_back({"NegativeKeptScoresBeatDroppedGroups",
                   {low, low, half, half, low, low, high, low},
                   {-1, -1, -1, -1, -1, -1, -1, -1},
                   two_of_four,
                   {6, 2, 3},
                   {0.8f / 1.8f, 0.5f / 1.8f, 0.5f / 1.8f}});
  // One strong expert (4) loses to two good pairs: groups are ranked by the sum of their two best.
  cases.push_back({"GroupsRankByTheirTwoBest",
                   {half, half, low, low, high, Logit(0.1), half, half},
                   {},
                   two_of_four,
                   {0, 1, 6},
                   {1 / 3.0f, 1 / 3.0f, 1 / 3.0f}});
  cases.push_back({"ScalingAfterNormalisation",
                   {high, low, half, low, low, low, low, low},
                   {},
                   scaled,
                   {0, 2, 1},
                   {2.5f * 0.8f / 1.5f, 2.5f * 0.5f / 1.5f, 2.5f * 0.2f / 1.5f}});
  cases.push_back({"ScalingWithoutNormalisation",
                   {high, low, half, low, low, low, low, low},
                   {},
                   raw_scaled,
                   {0, 2, 1},
                   {2.0f, 1.25f, 0.5f}});
  // exp of the logits: 3 2 1 1 1 1 1 2, sum 12.
  cases.push_back({"SoftmaxOverAllExperts",
                   {ln3, ln2, 0, 0, 0, 0, 0, ln2},
                   {},
                   greedy,
                   {0, 1, 7},
                   {3 / 12.0f, 2 / 12.0f, 2 / 12.0f}});
  // Group 1 has the best member, group 0 the greater sum. Weights stay those of the full softmax.
  cases.push_back({"GroupsRankByTheirBest",
                   {ln2, ln2, ln2, ln2, ln3, 0, 0, 0},
                   {},
                   by_max,
                   {4, 5, 6},
                   {3 / 14.0f, 1 / 14.0f, 1 / 14.0f}});
  return cases;
}

TEST(GateTest, ChoosesAndWeighsAsDeepSeekDoes) {
  auto backend = MakeCpuBackend({.threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  for (Case& test : Cases()) {
    SCOPED_TRACE(test.name);
    const int64_t count = static_cast<int64_t>(test.logits.size());
    const int64_t top_k = static_cast<int64_t>(test.experts.size());
    std::vector<int32_t> ids(top_k, -1);
    std::vector<float> weights(top_k, -1);
    std::vector<int64_t> load(count, 5);
    GateParams params = test.params;
    params.logits = TensorView(test.logits.data(), DType::kF32, {1, count});
    if (!test.bias.empty()) params.bias = TensorView(test.bias.data(), DType::kF32, {count});
    params.expert_ids = TensorView(ids.data(), DType::kI32, {1, top_k});
    params.expert_weights = TensorView(weights.data(), DType::kF32, {1, top_k});
    params.expert_load = TensorView(load.data(), DType::kI64, {count});
    const absl::Status status = (*backend)->moe().Gate(params, StreamId{});
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(ids, test.experts);
    for (int64_t k = 0; k < top_k; ++k) EXPECT_NEAR(weights[k], test.weights[k], 1e-6) << k;
    for (int64_t e = 0; e < count; ++e) {
      const bool chosen = std::find(ids.begin(), ids.end(), e) != ids.end();
      EXPECT_EQ(load[e], chosen ? 6 : 5) << "load of expert " << e;
    }
  }
}

}  // namespace
}  // namespace sluice::conformance
