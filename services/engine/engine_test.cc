#include "services/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/engine/decode_bucket.h"
#include "services/engine/fake_backend.h"
#include "services/engine/generator.h"

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

constexpr int64_t kVocab = 50;

model::ModelConfig SmallConfig() {
  model::ModelConfig config;
  config.vocab_size = kVocab;
  config.hidden_size = 8;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.kv_lora_rank = 4;
  config.qk_nope_head_dim = 2;
  config.qk_rope_head_dim = 2;
  config.v_head_dim = 2;
  config.intermediate_size = 8;
  config.max_position_embeddings = 200;
  return config;
}

std::shared_ptr<model::ModelWeights> SmallWeights() {
  auto weights = std::make_shared<model::ModelWeights>();
  weights->layers.resize(2);
  for (model::LayerWeights& layer : weights->layers) {
    layer.o.cols = 4;
    layer.dense = model::MlpWeights{};
  }
  return weights;
}

// The last layer has three experts, of which each token chooses two.
void AddExperts(model::ModelConfig* config, model::ModelWeights* weights) {
  config->n_routed_experts = 3;
  config->num_experts_per_tok = 2;
  config->moe_intermediate_size = 4;
  weights->layers[1].dense.reset();
  weights->layers[1].moe.emplace();
  weights->layers[1].moe->experts.resize(3);
  weights->layers[1].moe->slot_of_expert = {0, 1, 2};
}

class EngineTest : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> MakeEngine() {
    model::ModelConfig config = SmallConfig();
    auto weights = SmallWeights();
    if (moe_) AddExperts(&config, weights.get());
    auto engine = Engine::Create(config, weights, &backend_, options_);
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
  bool moe_ = false;
  EngineOptions options_{.slots_max = 4, .step_tokens_max = 16, .kv_pages = 8};
  std::vector<int32_t> tokens_ = {1, 2, 3};
  std::vector<int32_t> pages_ = {0};
  SamplingParams sampling_{.max_tokens = 10};
};

TEST(EngineKvCacheTest, TellsWhyOtherProcessesCannotMapIt) {
  struct PrivateBackend final : FakeBackend {
    absl::StatusOr<DeviceBuffer> AllocateShareable(size_t bytes, const std::string& what) override {
      absl::StatusOr<DeviceBuffer> buffer = Allocate(bytes, what);
      buffer->why_no_handle = "an old driver";
      return buffer;
    }
  } backend;
  const auto engine = Engine::Create(SmallConfig(), SmallWeights(), &backend,
                                     {.slots_max = 2, .step_tokens_max = 8, .kv_pages = 4});
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ((*engine)->kv_cache().handle, nullptr);
  EXPECT_EQ((*engine)->kv_cache().why_no_handle, "an old driver");
}

TEST(EngineStepLimitTest, IsThatOfTheSlowestKernels) {
  struct DeviceBackend final : FakeBackend {
    bool reads_host_memory() const override { return false; }
  } device;
  FakeBackend host;
  auto weights = SmallWeights();
  weights->on_device = true;
  const struct {
    Backend* backend;
    DType kv_dtype;
    absl::Duration limit;
  } cases[] = {{&host, DType::kF32, absl::Minutes(30)},
               {&host, DType::kBF16, absl::Minutes(30)},
               {&device, DType::kF32, absl::Minutes(10)},
               {&device, DType::kF8E4M3, absl::Minutes(10)},
               {&device, DType::kBF16, absl::Minutes(1)}};
  for (const auto& c : cases) {
    const auto engine = Engine::Create(
        SmallConfig(), weights, c.backend,
        {.slots_max = 2, .step_tokens_max = 8, .kv_pages = 4, .kv_dtype = c.kv_dtype});
    ASSERT_TRUE(engine.ok()) << engine.status();
    EXPECT_EQ((*engine)->step_limit(), c.limit);
  }
}

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
  EXPECT_EQ(engine->Wait(*handle, absl::Seconds(30), &result).message(), "step 1: device lost");
  EXPECT_EQ(engine->Submit(Plan(2, chunks)).status().message(), "step 1: device lost");
}

// What the step had queued before it failed may still run on the memory that goes.
TEST_F(EngineTest, WaitsForTheDeviceBeforeMemoryGoesAfterAFailedStep) {
  for (const bool fails : {false, true}) {
    auto engine = MakeEngine();
    if (fails) backend_.FailNextSample(absl::InternalError("no room"));
    const std::vector<StepChunk> chunks = {Chunk()};
    auto handle = engine->Submit(Plan(1, chunks));
    StepResult result;
    EXPECT_EQ(engine->Wait(*handle, absl::Seconds(30), &result).ok(), !fails);
    const int64_t before = backend_.num_syncs();
    engine.reset();
    EXPECT_EQ(backend_.num_syncs() - before, fails ? 1 : 0);
  }
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

// Notes what it is told, on the engine's thread.
class Listener : public LayerListener {
 public:
  explicit Listener(FakeBackend* backend) : backend_(backend) {}
  void OnKvWritten(uint64_t step, int64_t layer, StreamPoint) override {
    calls.push_back({step, layer});
    cache_writes.push_back(backend_->num_cache_writes());
  }

  std::vector<std::pair<uint64_t, int64_t>> calls;
  std::vector<int64_t> cache_writes;  // made before each call

 private:
  FakeBackend* const backend_;
};

TEST_F(EngineTest, TellsOfEachLayersKvOnceItIsWritten) {
  auto engine = MakeEngine();
  Listener listener(&backend_);
  engine->SetLayerListener(&listener);
  std::vector<StepChunk> chunks = {Chunk()};
  chunks[0].sampling = nullptr;  // a chunk that samples nothing still writes every layer
  StepResult result;
  for (const uint64_t number : {1, 2}) {
    auto handle = engine->Submit(Plan(number, chunks));
    ASSERT_TRUE(handle.ok()) << handle.status();
    ASSERT_TRUE(engine->Wait(*handle, absl::Seconds(30), &result).ok());
  }
  EXPECT_THAT(listener.calls, ElementsAre(Pair(1, 0), Pair(1, 1), Pair(2, 0), Pair(2, 1)));
  EXPECT_THAT(listener.cache_writes, ElementsAre(1, 2, 3, 4));
}

TEST_F(EngineTest, KvCacheViewCoversEveryPageOfEveryLayer) {
  auto engine = MakeEngine();
  const KvCacheView view = engine->kv_cache();
  ASSERT_EQ(view.layers.size(), 2u);
  EXPECT_NE(view.layers[0], view.layers[1]);
  EXPECT_EQ(view.pages, 8);
  EXPECT_EQ(view.page_tokens, kPageTokens);
  EXPECT_EQ(view.row_bytes, 6 * 4);
  for (std::byte* layer : view.layers) {
    EXPECT_EQ(layer[2 * view.row_bytes], std::byte{0});
    EXPECT_EQ(layer[view.pages * view.page_bytes() - 1], std::byte{0});
  }
  const std::vector<StepChunk> chunks = {Chunk()};  // three positions
  StepResult result;
  ASSERT_TRUE(engine->Wait(*engine->Submit(Plan(1, chunks)), absl::Seconds(30), &result).ok());
  for (std::byte* layer : view.layers) {
    EXPECT_EQ(layer[3 * view.row_bytes - 1], std::byte{1});
    EXPECT_EQ(layer[3 * view.row_bytes], std::byte{0});
  }
}

// A reservation's pages fill while steps run in others: no race (under the thread sanitizer).
TEST_F(EngineTest, PagesOfNoStepMayBeWrittenWhileStepsRun) {
  auto engine = MakeEngine();
  const KvCacheView view = engine->kv_cache();
  std::thread transport([&view] {
    for (std::byte* layer : view.layers) {
      std::fill_n(layer + 7 * view.page_bytes(), view.page_bytes(), std::byte{1});
    }
  });
  const std::vector<StepChunk> chunks = {Chunk()};
  StepResult result;
  for (uint64_t number = 1; number <= 20; ++number) {
    auto handle = engine->Submit(Plan(number, chunks));
    ASSERT_TRUE(handle.ok()) << handle.status();
    ASSERT_TRUE(engine->Wait(*handle, absl::Seconds(30), &result).ok());
  }
  transport.join();
}

TEST_F(EngineTest, ExpertLoadCountsSinceTheLastCall) {
  moe_ = true;
  auto engine = MakeEngine();
  std::vector<int64_t> load;
  engine->TakeExpertLoad(&load);
  EXPECT_THAT(load, ElementsAre(0, 0, 0, 0, 0, 0));
  // Layer 0 is dense. Of the three tokens one is sampled, and reaches the experts of the last
  // layer.
  const std::vector<StepChunk> chunks = {Chunk()};
  StepResult result;
  for (const uint64_t number : {1, 2}) {
    auto handle = engine->Submit(Plan(number, chunks));
    ASSERT_TRUE(handle.ok()) << handle.status();
    ASSERT_TRUE(engine->Wait(*handle, absl::Seconds(30), &result).ok());
  }
  std::thread other([&] { engine->TakeExpertLoad(&load); });
  other.join();
  EXPECT_THAT(load, ElementsAre(0, 0, 0, 0, 2, 2)) << "experts 1 and 2, once a step";
  engine->TakeExpertLoad(&load);
  EXPECT_THAT(load, ElementsAre(0, 0, 0, 0, 0, 0));
}

TEST_F(EngineTest, RecordedDecodeStepsLeaveNoTraceOfTheirPadding) {
  moe_ = true;
  options_.slots_max = 6;
  backend_.RecordSteps();
  auto engine = MakeEngine();
  std::vector<int64_t> load;
  engine->TakeExpertLoad(&load);
  EXPECT_THAT(load, ElementsAre(0, 0, 0, 0, 0, 0)) << "the warm-up counts nothing";
  const KvCacheView kv = engine->kv_cache();
  const auto is_zero = [](std::byte byte) { return byte == std::byte{0}; };
  EXPECT_TRUE(std::all_of(kv.layers[0], kv.layers[0] + kv.pages * kv.page_bytes(), is_zero));

  const std::vector<std::vector<int32_t>> pages = {{1}, {2}, {3}, {4}, {5}, {6}};
  StepResult result;
  uint64_t number = 0;
  for (const size_t sequences : {1, 2, 3, 5, 6}) {
    SCOPED_TRACE(sequences);
    std::vector<StepChunk> chunks(sequences, Chunk());
    for (size_t i = 0; i < sequences; ++i) {
      chunks[i].slot = static_cast<int32_t>(sequences - 1 - i);
      chunks[i].tokens = absl::MakeConstSpan(tokens_).first(1);
      chunks[i].pages = pages[i];
      chunks[i].output_position = static_cast<int64_t>(10 * sequences + i);
    }
    auto handle = engine->Submit(Plan(++number, chunks));
    ASSERT_TRUE(handle.ok()) << handle.status();
    ASSERT_TRUE(engine->Wait(*handle, absl::Seconds(30), &result).ok());
    EXPECT_EQ(backend_.num_replays(), static_cast<int64_t>(number));
    ASSERT_EQ(result.slots.size(), sequences);
    for (size_t i = 0; i < sequences; ++i) {
      EXPECT_EQ(result.slots[i].slot, chunks[i].slot);
      EXPECT_EQ(result.slots[i].tokens[0].token_id,
                FakeToken(chunks[i].slot, static_cast<int32_t>(10 * sequences + i), kVocab));
    }
    engine->TakeExpertLoad(&load);
    const int64_t tokens = static_cast<int64_t>(sequences);
    EXPECT_THAT(load, ElementsAre(0, 0, 0, 0, tokens, tokens));
  }
  EXPECT_TRUE(std::all_of(kv.layers[0], kv.layers[0] + kv.page_bytes(), is_zero))
      << "padding wrote to page 0";

  // Prompts, and steps that somebody watches, are not replayed.
  const std::vector<StepChunk> prompt = {Chunk()};
  auto handle = engine->Submit(Plan(++number, prompt));
  ASSERT_TRUE(handle.ok()) << handle.status();
  ASSERT_TRUE(engine->Wait(*handle, absl::Seconds(30), &result).ok());
  EXPECT_EQ(backend_.num_replays(), static_cast<int64_t>(number) - 1);
}

TEST(DecodeBucketTest, IsTheNextSizeUpAndNeverMoreThanTheSlots) {
  EXPECT_THAT(DecodeBuckets(1), ElementsAre(1));
  EXPECT_THAT(DecodeBuckets(6), ElementsAre(1, 2, 4, 6));
  EXPECT_THAT(DecodeBuckets(100), ElementsAre(1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 100));
  for (int64_t slots : {1, 7, 64, 65, 256, 1000}) {
    const std::vector<int64_t> buckets = DecodeBuckets(slots);
    EXPECT_EQ(buckets.back(), slots);
    for (int64_t n = 1; n <= slots; ++n) {
      EXPECT_EQ(DecodeBucket(n, slots), *std::lower_bound(buckets.begin(), buckets.end(), n));
    }
  }
}

TEST_F(EngineTest, ModelsWithoutExpertsHaveNoExpertLoad) {
  std::vector<int64_t> load = {1};
  MakeEngine()->TakeExpertLoad(&load);
  EXPECT_THAT(load, IsEmpty());
}

TEST_F(EngineTest, SaysWhatMemoryWasNeededFor) {
  backend_.FailAllocation("KV cache");
  auto engine = Engine::Create(SmallConfig(), SmallWeights(), &backend_, options_);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(engine.status().message(), HasSubstr("no room for KV cache. KV is "));
  EXPECT_THAT(engine.status().message(),
              HasSubstr(absl::StrCat("(kv_pages ", options_.kv_pages, " of ")));
  EXPECT_THAT(engine.status().message(), HasSubstr("lower one of them"));
}

TEST_F(EngineTest, RefusesOptionsOutOfRange) {
  EngineOptions options = options_;
  options.step_tokens_max = 3;
  EXPECT_THAT(Engine::Create(SmallConfig(), SmallWeights(), &backend_, options).status().message(),
              HasSubstr("step_tokens_max is 3, allowed is 4 to"));
}

}  // namespace
}  // namespace sluice::engine
