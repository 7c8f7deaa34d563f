// What `numerics: exact` promises of the prefix cache: a request answers with the same bits whether
// its pages were computed for it, found in the cache, or received from elsewhere.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/engine/generator.h"
#include "services/engine/scheduler.h"
#include "services/model/page_hash.h"
#include "tests/conformance/harness.h"
#include "tests/golden/golden.h"

namespace sluice::conformance {
namespace {

constexpr int64_t kOutputs = 70;  // past a page boundary

struct Answer {
  std::vector<engine::SampledToken> tokens;
  int64_t cached_tokens = 0;
};

void ExpectSameBits(const Answer& got, const Answer& want) {
  ASSERT_EQ(got.tokens.size(), want.tokens.size());
  for (size_t i = 0; i < want.tokens.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("token ", i));
    ASSERT_EQ(got.tokens[i].token_id, want.tokens[i].token_id);
    ASSERT_EQ(got.tokens[i].top_logprobs.size(), want.tokens[i].top_logprobs.size());
    for (size_t j = 0; j < want.tokens[i].top_logprobs.size(); ++j) {
      const engine::TokenLogprob& a = got.tokens[i].top_logprobs[j];
      const engine::TokenLogprob& b = want.tokens[i].top_logprobs[j];
      ASSERT_EQ(a.token_id, b.token_id);
      ASSERT_EQ(std::memcmp(&a.logprob, &b.logprob, sizeof(a.logprob)), 0)
          << a.logprob << " and " << b.logprob;
    }
  }
}

class ExactPrefixCacheTest : public ::testing::Test {
 protected:
  ExactPrefixCacheTest() : model_(LoadTestModel("deploy/models/sluice-tiny")) {
    options_.engine_options.kv_pages = 64;
    options_.engine_options.positions_max = 512;
    options_.engine_options.step_tokens_max = 96;
  }

  // 150 tokens of text, another end for each `variant`.
  engine::Request MakeRequest(uint64_t id, int variant) const {
    engine::Request request;
    request.id = id;
    for (int i = 0; i < 150; ++i) {
      const int salt = i < 140 ? 0 : variant * 13;
      request.prompt.push_back((i * 37 + salt + 11) % static_cast<int>(model_.config.vocab_size));
    }
    request.sampling.temperature = 0.8f;
    request.sampling.seed = 5;
    request.sampling.max_tokens = kOutputs;
    request.sampling.num_logprobs = engine::kLogprobsMax;
    return request;
  }
  static engine::Request Shared(engine::Request request) {
    request.page_hash_seed = model::PageHash{};
    return request;
  }

  // Runs the requests together to their end.
  static std::map<uint64_t, Answer> Run(engine::Generator* generator,
                                        const std::vector<engine::Request>& requests) {
    for (const engine::Request& request : requests) {
      EXPECT_TRUE(generator->Add(request).ok());
    }
    std::map<uint64_t, Answer> answers;
    std::vector<engine::TokenEvent> events;
    while (!generator->idle()) {
      events.clear();
      EXPECT_TRUE(generator->Step(&events).ok());
      for (engine::TokenEvent& event : events) {
        answers[event.request_id].tokens.push_back(std::move(event.token));
        answers[event.request_id].cached_tokens = event.cached_tokens;
      }
    }
    return answers;
  }

  const TestModel model_;
  HarnessOptions options_;
};

TEST_F(ExactPrefixCacheTest, HitsGiveTheSameBits) {
  Harness harness(model_, options_);
  engine::Generator generator(harness.raw_engine());
  // Computed without the cache, each alone.
  std::map<uint64_t, Answer> want;
  for (const int variant : {0, 1}) {
    want[variant] = Run(&generator, {MakeRequest(variant, variant)})[variant];
  }
  // A second turn: the first answer and more behind the prompt, in a prompt of its own.
  engine::Request second = MakeRequest(2, 0);
  for (const engine::SampledToken& token : want[0].tokens) second.prompt.push_back(token.token_id);
  second.prompt.insert(second.prompt.end(), {7, 8, 9});
  want[2] = Run(&generator, {second})[2];

  // The cache is filled by the first, and the others find prompt and output pages there.
  Answer got = Run(&generator, {Shared(MakeRequest(0, 0))})[0];
  EXPECT_EQ(got.cached_tokens, 0);
  ExpectSameBits(got, want[0]);
  std::map<uint64_t, Answer> together =
      Run(&generator, {Shared(MakeRequest(0, 0)), Shared(MakeRequest(1, 1)), Shared(second)});
  EXPECT_EQ(together[0].cached_tokens, 128);
  EXPECT_EQ(together[1].cached_tokens, 128);
  EXPECT_EQ(together[2].cached_tokens, 192) << "a page of the answer too";
  for (const uint64_t id : {0, 1, 2}) {
    SCOPED_TRACE(absl::StrCat("request ", id));
    ExpectSameBits(together[id], want[id]);
  }
}

// Runs what the scheduler has to do on the engine, from step `number` on.
void Drive(engine::Scheduler* scheduler, engine::Engine* engine, uint64_t* number,
           std::map<uint64_t, Answer>* answers) {
  std::vector<engine::TokenEvent> events;
  while (const engine::StepPlan* plan = scheduler->NextPlan()) {
    ASSERT_EQ(plan->number, ++*number);
    const auto handle = engine->Submit(*plan);
    ASSERT_TRUE(handle.ok()) << handle.status();
    engine::StepResult result;
    ASSERT_TRUE(engine->Wait(*handle, absl::Minutes(5), &result).ok());
    scheduler->OnResult(result, &events);
  }
  for (engine::TokenEvent& event : events) {
    (*answers)[event.request_id].tokens.push_back(std::move(event.token));
  }
}

// A prefill on one engine, its KV copied into the pages that another has reserved for it.
TEST_F(ExactPrefixCacheTest, ReceivedKvGivesTheSameBits) {
  Harness alone(model_, options_), prefill(model_, options_), decode(model_, options_);
  engine::Generator generator(alone.raw_engine());
  const Answer want = Run(&generator, {MakeRequest(1, 0)})[1];
  const engine::SchedulerOptions scheduler_options = {.slots_max = 8,
                                                      .step_tokens_max = 96,
                                                      .positions_max = 512,
                                                      .kv_pages = 64,
                                                      .vocab_size = model_.config.vocab_size};
  engine::Scheduler prefills(scheduler_options), decodes(scheduler_options);
  uint64_t prefill_steps = 0, decode_steps = 0;
  std::map<uint64_t, Answer> got, others;

  engine::Request request = MakeRequest(1, 0);
  request.leg = engine::Leg::kPrefill;
  ASSERT_TRUE(prefills.Add(request).ok());
  Drive(&prefills, prefill.raw_engine(), &prefill_steps, &got);
  ASSERT_EQ(got[1].tokens.size(), 1u);

  // The decode has the first page from a request that shares no more of the prompt.
  engine::Request cached = Shared(MakeRequest(7, 0));
  cached.prompt.resize(100);
  cached.sampling.max_tokens = 1;
  ASSERT_TRUE(decodes.Add(cached).ok());
  Drive(&decodes, decode.raw_engine(), &decode_steps, &others);
  request = Shared(MakeRequest(1, 0));
  request.leg = engine::Leg::kDecode;
  const auto reservation = decodes.Reserve(request);
  ASSERT_TRUE(reservation.ok()) << reservation.status();
  ASSERT_EQ(reservation->first_page, 1);
  ASSERT_EQ(reservation->pages.size(), 2u);

  const engine::KvCacheView from = prefill.raw_engine()->kv_cache();
  const engine::KvCacheView to = decode.raw_engine()->kv_cache();
  ASSERT_EQ(from.layers.size(), static_cast<size_t>(model_.config.num_hidden_layers));
  const absl::Span<const int32_t> held = prefills.PagesOf(1);
  std::vector<std::byte> page(to.page_bytes());
  for (size_t layer = 0; layer < from.layers.size(); ++layer) {
    for (size_t i = 0; i < reservation->pages.size(); ++i) {
      const std::byte* const source =
          from.layers[layer] + held[reservation->first_page + i] * from.page_bytes();
      ASSERT_TRUE(prefill.backend()->CopyToHost(page.data(), source, page.size(), {}).ok());
      ASSERT_TRUE(prefill.backend()->Sync({}).ok());
      std::byte* const target = to.layers[layer] + reservation->pages[i] * to.page_bytes();
      ASSERT_TRUE(decode.backend()->CopyToDevice(target, page.data(), page.size(), {}).ok());
      ASSERT_TRUE(decode.backend()->Sync({}).ok());
    }
  }
  prefills.ReleaseHeld(1);
  EXPECT_TRUE(prefills.idle());
  ASSERT_TRUE(decodes.Start(1, {got[1].tokens[0].token_id}).ok());
  Drive(&decodes, decode.raw_engine(), &decode_steps, &got);
  EXPECT_TRUE(decodes.idle());
  ExpectSameBits(got[1], want);
}

}  // namespace
}  // namespace sluice::conformance
