// The shipped model, prompts in one instance and outputs in another, against one engine that does
// both: with exact numerics every token and every logprob is the same.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "services/engine/generator.h"
#include "services/instance/local_cluster.h"
#include "services/instance/model_loading.h"
#include "services/instance/wire.h"
#include "services/model/page_hash.h"

namespace sluice::instance {
namespace {

class DisaggregatedTest : public testing::Test {
 protected:
  DisaggregatedTest() {
    const ModelSource source{.dir = "deploy/models/sluice-tiny", .threads = 1};
    auto model = LoadModel(source, *MakeBackendOf(source), {});
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  static std::unique_ptr<Backend> MakeBackend() {
    auto backend = MakeCpuBackend({.threads = 1});
    EXPECT_TRUE(backend.ok()) << backend.status();
    return *std::move(backend);
  }

  // Chunks of another size, so that prompts are cut differently.
  std::unique_ptr<engine::Engine> MakeEngine(int64_t step_tokens) {
    engine::EngineOptions options = model_.engine_options;
    options.slots_max = 8;
    options.step_tokens_max = step_tokens;
    options.kv_pages = 64;
    backends_.push_back(MakeBackend());
    auto engine =
        engine::Engine::Create(model_.config, model_.weights, backends_.back().get(), options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  v1::Admit Ask(uint64_t request, int prompt, float temperature) {
    v1::Admit admit;
    admit.set_request(request);
    std::vector<int32_t> tokens;
    for (int i = 0; i < prompt; ++i) {
      tokens.push_back(static_cast<int32_t>((i * 37 + 11) % model_.config.vocab_size));
    }
    admit.mutable_prompt_ids()->Add(tokens.begin(), tokens.end());
    std::vector<model::PageHash> hashes;
    model::PageHasher().Extend({}, tokens, &hashes);
    for (const model::PageHash& hash : hashes) {
      admit.mutable_page_hashes()->append(hash.begin(), hash.end());
    }
    v1::Sampling& sampling = *admit.mutable_sampling();
    sampling.set_temperature(temperature);
    sampling.set_top_p(1);
    sampling.set_repetition_penalty(1.1f);
    sampling.set_seed(request);
    sampling.set_max_tokens(20);
    sampling.set_num_logprobs(0);
    return admit;
  }

  LoadedModel model_;
  std::vector<std::unique_ptr<Backend>> backends_;  // one for each engine, which are used at once
};

TEST_F(DisaggregatedTest, TokensAndLogprobsAreThoseOfOneEngine) {
  std::vector<v1::Admit> asks;
  for (const int prompt : {1, 63, 64, 65, 200, 200}) {
    asks.push_back(Ask(asks.size() + 1, prompt, asks.size() % 2 == 0 ? 0.0f : 0.8f));
  }
  std::map<uint64_t, std::vector<std::pair<int32_t, float>>> wanted;
  {
    const auto engine = MakeEngine(64);
    engine::Generator generator(engine.get());
    for (const v1::Admit& ask : asks) {
      auto request = MakeRequest(ask);
      ASSERT_TRUE(request.ok()) << request.status();
      request->id = ask.request();
      ASSERT_EQ(generator.Add(*std::move(request)), absl::OkStatus());
    }
    std::vector<engine::TokenEvent> events;
    while (!generator.idle()) ASSERT_EQ(generator.Step(&events), absl::OkStatus());
    for (const engine::TokenEvent& event : events) {
      wanted[event.request_id].emplace_back(event.token.token_id, event.token.logprob);
    }
  }
  const auto prefill = MakeEngine(48), decode = MakeEngine(8);
  LocalCluster cluster(prefill.get(), decode.get());
  for (const v1::Admit& ask : asks) cluster.Submit(ask);
  for (const v1::Admit& ask : asks) {
    const LocalCluster::Answer answer = cluster.Wait(ask.request());
    EXPECT_EQ(answer.failure, "");
    std::vector<std::pair<int32_t, float>> got;
    for (size_t i = 0; i < answer.tokens.size(); ++i) {
      got.emplace_back(answer.tokens[i], answer.logprobs.at(i));
    }
    EXPECT_EQ(got, wanted.at(ask.request())) << ask.prompt_ids_size() << " prompt tokens";
  }
  // Again: prefix caches on both sides have it now, and the tokens stay.
  v1::Admit again = asks.back();
  again.set_request(100);
  cluster.Submit(again);
  const LocalCluster::Answer answer = cluster.Wait(100);
  EXPECT_EQ(answer.cached_tokens, 192u);
  EXPECT_EQ(answer.tokens, cluster.Wait(asks.back().request()).tokens);
  EXPECT_EQ(answer.kv_bytes, 8 * KvBytesPerToken(model_.config, model_.engine_options.kv_dtype));
}

}  // namespace
}  // namespace sluice::instance
