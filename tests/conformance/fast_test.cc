// `numerics: fast` against transformers' float32: every token it would emit, teacher-forced, has a
// reference logit within a tolerance of the best one; and with FP8 weights its logits agree with
// the float32 computation on the same quantised operands.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/conformance/harness.h"
#include "tests/golden/golden.h"

namespace sluice::conformance {
namespace {

struct Case {
  const char* geometry;
  double regret_max;     // of the largest logit, what a chosen token may lie below the best
  double calc_diff_max;  // over the logits of all positions
};

class FastTest : public ::testing::TestWithParam<Case> {};

HarnessOptions FastOptions() {
  HarnessOptions options;
  options.backend_options.numerics = Numerics::kFast;
  options.engine_options.absorb_prompts = false;
  return options;
}

TEST_P(FastTest, TeacherForcedTokensAreNearlyTheBest) {
  const Golden golden = Golden::Load(GetParam().geometry);
  Harness harness(MakeGoldenModel(GetParam().geometry, golden.seed()), FastOptions());
  const absl::Span<const float> want = golden.F32("prompt.65.all_logits");
  const std::vector<float> got = harness.LogitsAtEveryPosition(golden.I32("prompt.65.ids"));
  ASSERT_EQ(got.size(), want.size());
  EXPECT_LT(CalcDiff(got, want), GetParam().calc_diff_max);
  float largest = 0;
  for (const float logit : want) largest = std::max(largest, std::fabs(logit));
  const int64_t vocab = harness.vocab_size();
  for (size_t row = 0; row < want.size(); row += vocab) {
    const auto emitted = std::max_element(got.begin() + row, got.begin() + row + vocab);
    const float best = *std::max_element(want.begin() + row, want.begin() + row + vocab);
    EXPECT_GE(want[emitted - got.begin()], best - GetParam().regret_max * largest)
        << "position " << row / vocab;
  }
}

// A prompt in one piece takes the unabsorbed path.
TEST_P(FastTest, PromptInOnePiece) {
  const Golden golden = Golden::Load(GetParam().geometry);
  Harness harness(MakeGoldenModel(GetParam().geometry, golden.seed()), FastOptions());
  for (const char* prompt : {"prompt.63", "prompt.64", "prompt.130"}) {
    const StepRecord record = harness.RunPrompt(golden.I32(std::string(prompt) + ".ids"));
    EXPECT_LT(CalcDiff(record.logits, golden.F32(std::string(prompt) + ".logits")),
              GetParam().calc_diff_max)
        << prompt;
  }
}

INSTANTIATE_TEST_SUITE_P(Geometries, FastTest,
                         ::testing::Values(Case{"v3_grouped", 0.05, 1e-3},
                                           Case{"v3_grouped_fp8", 0.05, 1e-3},
                                           Case{"v3_ungrouped_noqlora", 0.05, 1e-3},
                                           Case{"v2_softmax", 0.05, 1e-3},
                                           Case{"v2_grouped", 0.05, 1e-3}),
                         [](const auto& info) { return std::string(info.param.geometry); });

}  // namespace
}  // namespace sluice::conformance
