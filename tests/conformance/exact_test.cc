// `numerics: exact` against transformers' float32: logits and hidden states within 1e-4 of the
// largest, the same experts in the same order, the same 64 greedy tokens.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/engine/generator.h"
#include "tests/conformance/harness.h"
#include "tests/golden/golden.h"

namespace sluice::conformance {
namespace {

constexpr double kTolerance = 1e-4;
constexpr int kLengths[] = {1, 2, 63, 64, 65, 130};
constexpr int kFullLength = 65;
constexpr int kGreedySteps = 64;

struct Case {
  const char* geometry;
  bool absorb_prompts;
};

std::string Name(const Case& test) {
  return absl::StrCat(test.geometry, test.absorb_prompts ? "" : "_unabsorbed");
}

class ExactTest : public ::testing::TestWithParam<Case> {
 protected:
  ExactTest()
      : golden_(Golden::Load(GetParam().geometry)),
        harness_(MakeGoldenModel(GetParam().geometry, golden_.seed()), Options()) {}

  static HarnessOptions Options() {
    HarnessOptions options;
    options.engine_options.absorb_prompts = GetParam().absorb_prompts;
    return options;
  }

  const Golden golden_;
  Harness harness_;
};

TEST_P(ExactTest, PromptsMatch) {
  for (const int length : kLengths) {
    SCOPED_TRACE(absl::StrCat("prompt of ", length));
    const std::string prompt = absl::StrCat("prompt.", length);
    const StepRecord record = harness_.RunPrompt(golden_.I32(prompt + ".ids"));
    EXPECT_LT(RelativeError(record.logits, golden_.F32(prompt + ".logits")), kTolerance);
    const std::vector<int32_t> experts = Joined(record.experts);
    EXPECT_EQ(absl::MakeConstSpan(experts), golden_.I32(prompt + ".experts"));
    EXPECT_EQ(record.sampled[0].token_id, golden_.I32(prompt + ".greedy")[0]);
  }
}

TEST_P(ExactTest, HiddenStatesMatchAfterEveryLayer) {
  const std::string prompt = absl::StrCat("prompt.", kFullLength);
  const StepRecord record = harness_.RunPrompt(golden_.I32(prompt + ".ids"));
  const absl::Span<const float> want = golden_.F32(prompt + ".hidden");
  const size_t size = want.size() / record.hidden.size();
  for (size_t layer = 0; layer < record.hidden.size(); ++layer) {
    EXPECT_LT(RelativeError(record.hidden[layer], want.subspan(layer * size, size)), kTolerance)
        << "after layer " << layer;
  }
}

TEST_P(ExactTest, LogitsMatchAtEveryPosition) {
  const std::string prompt = absl::StrCat("prompt.", kFullLength);
  const std::vector<float> logits = harness_.LogitsAtEveryPosition(golden_.I32(prompt + ".ids"));
  EXPECT_LT(RelativeError(logits, golden_.F32(prompt + ".all_logits")), kTolerance);
}

// Pieces that end within a page and go on in the next step.
TEST_P(ExactTest, ChunkedPromptsMatch) {
  const absl::Span<const int32_t> ids = golden_.I32("prompt.130.ids");
  const std::vector<int32_t> pages = FirstPages(130);
  for (const int64_t size : {33, 64, 100}) {
    StepRecord record;
    for (int64_t begin = 0; begin < 130; begin += size) {
      record = harness_.Step({{.ids = ids,
                               .pages = pages,
                               .begin = begin,
                               .count = std::min<int64_t>(size, 130 - begin)}});
    }
    EXPECT_LT(RelativeError(record.logits, golden_.F32("prompt.130.logits")), kTolerance)
        << "pieces of " << size;
  }
}

// All prompts at once, as serving does it: continuous batching, two steps in flight, no tap.
TEST_P(ExactTest, GreedyContinuationsMatch) {
  engine::Generator generator(harness_.raw_engine());
  for (const int length : kLengths) {
    const absl::Span<const int32_t> ids = golden_.I32(absl::StrCat("prompt.", length, ".ids"));
    engine::Request request;
    request.id = static_cast<uint64_t>(length);
    request.prompt.assign(ids.begin(), ids.end());
    request.sampling.temperature = 0;
    request.sampling.max_tokens = kGreedySteps;
    ASSERT_TRUE(generator.Add(std::move(request)).ok());
  }
  std::map<uint64_t, std::vector<int32_t>> tokens;
  std::vector<engine::TokenEvent> events;
  while (!generator.idle()) {
    events.clear();
    ASSERT_TRUE(generator.Step(&events).ok());
    for (const engine::TokenEvent& event : events) {
      tokens[event.request_id].push_back(event.token.token_id);
    }
  }
  for (const int length : kLengths) {
    EXPECT_EQ(absl::MakeConstSpan(tokens[length]),
              golden_.I32(absl::StrCat("prompt.", length, ".greedy")))
        << "prompt of " << length;
  }
}

INSTANTIATE_TEST_SUITE_P(Geometries, ExactTest,
                         ::testing::Values(Case{"v3_grouped", true}, Case{"v3_grouped", false},
                                           Case{"v3_grouped_fp8", true},
                                           Case{"v3_grouped_fp8", false},
                                           Case{"v3_ungrouped_noqlora", true},
                                           Case{"v3_ungrouped_noqlora", false},
                                           Case{"v2_softmax", true}, Case{"v2_softmax", false},
                                           Case{"v2_grouped", true}, Case{"v2_grouped", false}),
                         [](const auto& info) { return Name(info.param); });

}  // namespace
}  // namespace sluice::conformance
