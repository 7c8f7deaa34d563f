#include "services/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "services/engine/fake_backend.h"
#include "services/engine/generator.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kVocab = 50;

model::ModelConfig SmallConfig() {
  model::ModelConfig config;
  config.vocab_size = kVocab;
  config.hidden_size = 8;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 2;
  config.kv_lora_rank = 4;
  config.qk_nope_head_dim = 2;
  config.qk_rope_head_dim = 2;
  config.v_head_dim = 2;
  config.intermediate_size = 8;
  config.max_position_embeddings = 200;
  return config;
}

std::shared_ptr<const model::ModelWeights> SmallWeights() {
  auto weights = std::make_shared<model::ModelWeights>();
  weights->layers.resize(1);
  weights->layers[0].o.cols = 4;
  weights->layers[0].dense = model::MlpWeights{};
  return weights;
}

class EngineTest : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> MakeEngine() {
    auto engine = Engine::Create(SmallConfig(), SmallWeights(), &backend_, options_);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
  // A chunk of slot 0 that samples.
  StepChunk Chunk() {
    return {
        .slot = 0, .first_position = 0, .tokens = tokens_, .pages = pages_, .sampling = &sampling_};
  }
  static StepPlan Plan(uint64_t number, const std::vector<StepChunk>& chunks) {
    return {.number = number, .chunks = chunks};
  }

  FakeBackend backend_;
  EngineOptions options_{.slots_max = 4, .step_tokens_max = 16, .kv_pages = 8};
  std::vector<int32_t> tokens_ = {1, 2, 3};
  std::vector<int32_t> pages_ = {0};
  SamplingParams sampling_{.max_tokens = 10};
};

TEST_F(EngineTest, GivesOneTokenForEachSamplingChunkInOrder) {
  auto engine = MakeEngine();
  std::vector<StepChunk> chunks(3, Chunk());
  chunks[0].slot = 2;
  chunks[1].slot = 0;
  chunks[1].sampling = nullptr;
  chunks[2].slot = 3;
  chunks[2].output_position = 6;
  auto handle = engine->Submit(Plan(1, chunks));
  ASSERT_TRUE(handle.ok()) << handle.status();
  StepResult result;
  ASSERT_TRUE(engine->Wait(*handle, absl::Seconds(30), &result).ok());
  EXPECT_EQ(result.number, 1u);
  ASSERT_EQ(result.slots.size(), 2u);
  EXPECT_EQ(result.slots[0].slot, 2);
  EXPECT_EQ(result.slots[0].tokens[0].token_id, FakeToken(2, 0, kVocab));
  EXPECT_EQ(result.slots[1].tokens[0].token_id, FakeToken(3, 6, kVocab));
}

TEST_F(EngineTest, TwoStepsMayBeInFlight) {
  auto engine = MakeEngine();
  backend_.Hold();
  const std::vector<StepChunk> chunks = {Chunk()};
  auto first = engine->Submit(Plan(1, chunks));
  auto second = engine->Submit(Plan(2, chunks));
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(engine->Submit(Plan(3, chunks)).status().code(), absl::StatusCode::kFailedPrecondition);
  StepResult result;
  EXPECT_EQ(engine->Wait(*second, absl::Seconds(30), &result).code(),
            absl::StatusCode::kInvalidArgument)
      << "steps are read in order";
  EXPECT_EQ(engine->Wait(*first, absl::Milliseconds(1), &result).code(),
            absl::StatusCode::kDeadlineExceeded);
  backend_.Release();
  EXPECT_TRUE(engine->Wait(*first, absl::Seconds(30), &result).ok());
  EXPECT_TRUE(engine->Submit(Plan(3, chunks)).ok());
  EXPECT_TRUE(engine->Wait(*second, absl::Seconds(30), &result).ok());
  EXPECT_EQ(result.number, 2u);
  // Step 3 is still in flight: the destructor waits for it.
}

TEST_F(EngineTest, AFailedStepEndsTheEngine) {
  auto engine = MakeEngine();
  backend_.FailNextSample(absl::InternalError("device lost"));
  const std::vector<StepChunk> chunks = {Chunk()};
  auto handle = engine->Submit(Plan(1, chunks));
  StepResult result;
  EXPECT_EQ(engine->Wait(*handle, absl::Seconds(30), &result).message(), "device lost");
  EXPECT_EQ(engine->Submit(Plan(2, chunks)).status().message(), "device lost");
}

TEST_F(EngineTest, RefusesBadPlansAndGoesOn) {
  auto engine = MakeEngine();
  struct Case {
    const char* message;
    std::function<void(StepPlan*, std::vector<StepChunk>*)> damage;
  };
  const std::vector<int32_t> wild_token = {1, 50};
  const std::vector<int32_t> wild_page = {8};
  const std::vector<int32_t> many(17, 1);
  SamplingParams bad_sampling{.temperature = -1, .max_tokens = 10};
  const std::vector<SlotReset> bad_reset = {{.slot = 4}};
  const std::vector<Case> cases = {
      {"number 2, the next is 1", [](auto* plan, auto*) { plan->number = 2; }},
      {"no chunks", [](auto*, auto* chunks) { chunks->clear(); }},
      {"slot is 4", [](auto*, auto* chunks) { chunks->at(0).slot = 4; }},
      {"slot 0 has a chunk already", [&](auto*, auto* chunks) { chunks->push_back(Chunk()); }},
      {"no tokens", [](auto*, auto* chunks) { chunks->at(0).tokens = {}; }},
      {"token id 50", [&](auto*, auto* chunks) { chunks->at(0).tokens = wild_token; }},
      {"page 8", [&](auto*, auto* chunks) { chunks->at(0).pages = wild_page; }},
      {"0 pages for 3 positions", [](auto*, auto* chunks) { chunks->at(0).pages = {}; }},
      {"positions 198 to 200", [](auto*, auto* chunks) { chunks->at(0).first_position = 198; }},
      {"more than 16 tokens", [&](auto*, auto* chunks) { chunks->at(0).tokens = many; }},
      {"temperature is -1", [&](auto*, auto* chunks) { chunks->at(0).sampling = &bad_sampling; }},
      {"reset of slot 4", [&](auto* plan, auto*) { plan->resets = bad_reset; }},
  };
  for (const Case& test_case : cases) {
    std::vector<StepChunk> chunks = {Chunk()};
    StepPlan plan{.number = 1};
    test_case.damage(&plan, &chunks);
    plan.chunks = chunks;
    const absl::Status status = engine->Submit(plan).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << test_case.message;
    EXPECT_THAT(status.message(), HasSubstr(test_case.message));
  }
  const std::vector<StepChunk> chunks = {Chunk()};
  auto handle = engine->Submit(Plan(1, chunks));
  StepResult result;
  EXPECT_TRUE(engine->Wait(*handle, absl::Seconds(30), &result).ok());
}

TEST_F(EngineTest, LogitsThatAreNoNumbersEndTheRequest) {
  auto engine = MakeEngine();
  backend_.DamageLogits();
  Generator generator(engine.get());
  ASSERT_TRUE(
      generator.Add({.id = 1, .prompt = tokens_, .output = {}, .sampling = sampling_}).ok());
  std::vector<TokenEvent> events;
  while (!generator.idle()) ASSERT_TRUE(generator.Step(&events).ok());
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].finish, FinishReason::kDamaged);
}

TEST_F(EngineTest, SaysWhatMemoryWasNeededFor) {
  backend_.FailAllocation("KV cache of layer 0");
  auto engine = Engine::Create(SmallConfig(), SmallWeights(), &backend_, options_);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(engine.status().message(), HasSubstr("KV cache of layer 0"));
}

TEST_F(EngineTest, RefusesOptionsOutOfRange) {
  EngineOptions options = options_;
  options.step_tokens_max = 3;
  EXPECT_THAT(Engine::Create(SmallConfig(), SmallWeights(), &backend_, options).status().message(),
              HasSubstr("step_tokens_max is 3, allowed is 4 to"));
}

}  // namespace
}  // namespace sluice::engine
