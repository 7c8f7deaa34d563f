// The shipped tiny model, bf16 and FP8, loaded from its checkpoint, against transformers' float32
// on the same (dequantised) weights.

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/engine/generator.h"
#include "tests/conformance/harness.h"
#include "tests/golden/golden.h"

namespace sluice::conformance {
namespace {

constexpr double kTolerance = 1e-4;
constexpr double kLogprobTolerance = 2e-3;
constexpr int kPrompts = 12;

struct Case {
  const char* checkpoint;
  const char* golden;
};

class TinyTest : public ::testing::TestWithParam<Case> {
 protected:
  TinyTest()
      : golden_(Golden::Load(GetParam().golden)),
        model_(LoadTestModel(absl::StrCat("deploy/models/", GetParam().checkpoint))) {}

  // The prompts that the golden has.
  std::vector<std::string> Prompts() const {
    std::vector<std::string> names;
    for (int i = 0; i < kPrompts; ++i) {
      const std::string name = absl::StrCat("prompt.", i);
      if (golden_.Has(name + ".ids")) names.push_back(name);
    }
    return names;
  }

  const Golden golden_;
  const TestModel model_;
};

TEST_P(TinyTest, PromptsMatch) {
  for (const bool absorb_prompts : {true, false}) {
    HarnessOptions options;
    options.engine_options.absorb_prompts = absorb_prompts;
    Harness harness(model_, options);
    ASSERT_GE(Prompts().size(), 8u);
    for (const std::string& prompt : Prompts()) {
      SCOPED_TRACE(absl::StrCat(prompt, absorb_prompts ? "" : ", unabsorbed"));
      const StepRecord record = harness.RunPrompt(golden_.I32(prompt + ".ids"));
      EXPECT_LT(RelativeError(record.logits, golden_.F32(prompt + ".logits")), kTolerance);
      const std::vector<int32_t> experts = Joined(record.experts);
      EXPECT_EQ(absl::MakeConstSpan(experts), golden_.I32(prompt + ".experts"));
      if (golden_.Has(prompt + ".hidden")) {
        EXPECT_LT(RelativeError(Joined(record.hidden), golden_.F32(prompt + ".hidden")),
                  kTolerance);
      }
    }
  }
}

TEST_P(TinyTest, GreedyTokensAndLogprobsMatch) {
  Harness harness(model_, HarnessOptions());
  engine::Generator generator(harness.raw_engine());
  const std::vector<std::string> prompts = Prompts();
  for (size_t i = 0; i < prompts.size(); ++i) {
    const absl::Span<const int32_t> ids = golden_.I32(prompts[i] + ".ids");
    engine::Request request;
    request.id = i;
    request.prompt.assign(ids.begin(), ids.end());
    request.sampling.temperature = 0;
    request.sampling.num_logprobs = 0;
    request.sampling.max_tokens = static_cast<int64_t>(golden_.I32(prompts[i] + ".greedy").size());
    ASSERT_TRUE(generator.Add(std::move(request)).ok());
  }
  std::map<uint64_t, std::vector<engine::SampledToken>> sampled;
  std::vector<engine::TokenEvent> events;
  while (!generator.idle()) {
    events.clear();
    ASSERT_TRUE(generator.Step(&events).ok());
    for (engine::TokenEvent& event : events) {
      sampled[event.request_id].push_back(std::move(event.token));
    }
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    SCOPED_TRACE(prompts[i]);
    const absl::Span<const int32_t> tokens = golden_.I32(prompts[i] + ".greedy");
    const absl::Span<const float> logprobs = golden_.F32(prompts[i] + ".greedy_logprobs");
    ASSERT_EQ(sampled[i].size(), tokens.size());
    for (size_t t = 0; t < tokens.size(); ++t) {
      ASSERT_EQ(sampled[i][t].token_id, tokens[t]) << "token " << t;
      EXPECT_NEAR(sampled[i][t].logprob, logprobs[t], kLogprobTolerance) << "token " << t;
    }
  }
}

TEST_P(TinyTest, FastNumericsStayClose) {
  Harness harness(model_, FastOptions());
  for (const std::string& prompt : Prompts()) {
    const StepRecord record = harness.RunPrompt(golden_.I32(prompt + ".ids"));
    EXPECT_LT(CalcDiff(record.logits, golden_.F32(prompt + ".logits")), 1e-3) << prompt;
    EXPECT_EQ(record.sampled[0].token_id, golden_.I32(prompt + ".greedy")[0]) << prompt;
  }
}

// All prompts at once, as a server runs them: prompts beside decodes, the bf16 cache, nobody
// looking in.
TEST_P(TinyTest, FastBatchesGiveTheReferencesTokens) {
  constexpr float kSureMargin = 2.0f;  // after a closer call another token may be right too
  Harness harness(model_, FastOptions());
  engine::Generator generator(harness.raw_engine());
  const std::vector<std::string> prompts = Prompts();
  for (size_t i = 0; i < prompts.size(); ++i) {
    const absl::Span<const int32_t> ids = golden_.I32(prompts[i] + ".ids");
    ASSERT_TRUE(generator
                    .Add({.id = i,
                          .prompt = {ids.begin(), ids.end()},
                          .output = {},
                          .sampling = {.temperature = 0, .max_tokens = 64}})
                    .ok());
  }
  std::vector<std::vector<int32_t>> tokens(prompts.size());
  std::vector<engine::TokenEvent> events;
  while (!generator.idle()) {
    events.clear();
    ASSERT_TRUE(generator.Step(&events).ok());
    for (const engine::TokenEvent& event : events) {
      tokens[event.request_id].push_back(event.token.token_id);
    }
  }
  size_t compared = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const absl::Span<const int32_t> greedy = golden_.I32(prompts[i] + ".greedy");
    const absl::Span<const float> margins = golden_.F32(prompts[i] + ".greedy_margins");
    ASSERT_EQ(tokens[i].size(), 64u);
    for (size_t j = 0; j < greedy.size() && margins[j] > kSureMargin; ++j, ++compared) {
      ASSERT_EQ(tokens[i][j], greedy[j]) << prompts[i] << ", token " << j;
    }
  }
  EXPECT_GT(compared, 16 * prompts.size()) << "hardly anything was compared";
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, TinyTest,
                         ::testing::Values(Case{"sluice-tiny", "sluice_tiny"},
                                           Case{"sluice-tiny-fp8", "sluice_tiny_fp8"}),
                         [](const auto& info) { return std::string(info.param.golden); });

}  // namespace
}  // namespace sluice::conformance
