// A short run of the whole engine on several threads, small enough for ThreadSanitizer.

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/engine/generator.h"
#include "tests/conformance/harness.h"
#include "tests/golden/golden.h"

namespace sluice::conformance {
namespace {

TEST(ThreadsTest, BatchedGreedyTokensOnAnyNumberOfThreads) {
  constexpr int kSteps = 6;
  const Golden golden = Golden::Load("v3_grouped");
  const TestModel model = MakeGoldenModel("v3_grouped", golden.seed());
  for (const int threads : {1, 2, 3, 5}) {
    SCOPED_TRACE(absl::StrCat(threads, " threads"));
    HarnessOptions options;
    options.backend_options.threads = threads;
    Harness harness(model, options);
    engine::Generator generator(harness.raw_engine());
    for (const int length : {1, 2, 63, 65}) {
      const absl::Span<const int32_t> ids = golden.I32(absl::StrCat("prompt.", length, ".ids"));
      engine::Request request;
      request.id = static_cast<uint64_t>(length);
      request.prompt.assign(ids.begin(), ids.end());
      request.sampling.temperature = 0;
      request.sampling.max_tokens = kSteps;
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
    for (const auto& [length, got] : tokens) {
      EXPECT_EQ(absl::MakeConstSpan(got),
                golden.I32(absl::StrCat("prompt.", length, ".greedy")).first(kSteps));
    }
    EXPECT_EQ(tokens.size(), 4u);
  }
}

}  // namespace
}  // namespace sluice::conformance
