#include "services/instance/instance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "services/engine/fake_backend.h"
#include "services/instance/fake_transport.h"
#include "services/instance/local_cluster.h"
#include "services/transport/memory_mover.h"
#include "services/transport/socket_transport.h"

namespace sluice::instance {
namespace {

constexpr int64_t kVocab = 50;
constexpr absl::Duration kSoon = absl::Seconds(60);  // for what happens at once

// Two layers, no arithmetic.
std::unique_ptr<engine::Engine> MakeEngine(Backend* backend) {
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
  config.max_position_embeddings = 1000;
  auto weights = std::make_shared<model::ModelWeights>();
  weights->layers.resize(2);
  for (model::LayerWeights& layer : weights->layers) {
    layer.o.cols = 4;
    layer.dense = model::MlpWeights{};
  }
  auto engine = engine::Engine::Create(config, weights, backend,
                                       {.slots_max = 8, .step_tokens_max = 128, .kv_pages = 64});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

v1::Admit Ask(uint64_t request, int prompt, uint32_t max_tokens) {
  v1::Admit admit;
  admit.set_request(request);
  for (int i = 0; i < prompt; ++i) admit.add_prompt_ids(static_cast<uint32_t>(i % kVocab));
  v1::Sampling& sampling = *admit.mutable_sampling();
  sampling.set_top_p(1);
  sampling.set_repetition_penalty(1);
  sampling.set_max_tokens(max_tokens);
  sampling.set_num_logprobs(-1);
  return admit;
}

class InstanceTest : public testing::Test {
 protected:
  engine::FakeBackend prefill_backend_, decode_backend_;
  std::unique_ptr<engine::Engine> prefill_engine_ = MakeEngine(&prefill_backend_);
  std::unique_ptr<engine::Engine> decode_engine_ = MakeEngine(&decode_backend_);
};

TEST_F(InstanceTest, RequestsGoThroughAndBothSidesDrain) {
  LocalCluster cluster(prefill_engine_.get(), decode_engine_.get());
  // Lengths around pages, steps and chunks; more than there are slots, in two waves.
  const int prompts[] = {1, 63, 64, 65, 127, 128, 129, 300};
  for (uint64_t wave = 0; wave < 2; ++wave) {
    for (uint64_t i = 0; i < 8; ++i) cluster.Submit(Ask(10 * wave + i, prompts[i], 5));
    for (uint64_t i = 0; i < 8; ++i) {
      const LocalCluster::Answer answer = cluster.Wait(10 * wave + i);
      EXPECT_EQ(answer.failure, "") << prompts[i];
      EXPECT_EQ(answer.tokens.size(), 5u) << prompts[i];
      // Two layers of rows of six floats.
      EXPECT_EQ(answer.kv_bytes, prompts[i] * 2 * 6 * 4) << prompts[i];
    }
  }
  for (Instance* instance : {&cluster.prefill(), &cluster.decode()}) {
    EXPECT_TRUE(instance->ready());
    instance->BeginDrain();
    EXPECT_EQ(instance->WaitUntilDone(kSoon), absl::OkStatus());
    EXPECT_FALSE(instance->ready());
    EXPECT_EQ(instance->status().load().kv_pages_free(), 64u);
  }
}

TEST_F(InstanceTest, HeartbeatsGoOnWithoutProgressWhileAStepHangs) {
  LocalCluster cluster(prefill_engine_.get(), decode_engine_.get(),
                       {.heartbeat = absl::Milliseconds(2)});
  decode_backend_.Hold();
  cluster.Submit(Ask(1, 10, 5));
  // What led up to the step that hangs counts as progress.
  uint64_t progress = cluster.WaitForHeartbeats(1);
  for (int same = 0; same < 400;) {
    const uint64_t next = cluster.WaitForHeartbeats(1);
    same = next == progress ? same + 1 : 0;
    progress = next;
  }
  decode_backend_.Release();
  EXPECT_EQ(cluster.Wait(1).tokens.size(), 5u);
}

TEST_F(InstanceTest, AStepThatDoesNotEndIsAFailureOfTheEngine) {
  LocalCluster cluster(prefill_engine_.get(), decode_engine_.get(),
                       {.step_limit_min = absl::Milliseconds(50)});
  decode_backend_.Hold();
  cluster.Submit(Ask(1, 10, 5));
  EXPECT_EQ(cluster.Wait(1).failure, "REASON_ENGINE");
  const absl::Status done = cluster.decode().WaitUntilDone(kSoon);
  EXPECT_TRUE(absl::IsDeadlineExceeded(done)) << done;
  EXPECT_THAT(std::string(done.message()), testing::HasSubstr("step 1 still runs after 50ms"));
  EXPECT_FALSE(cluster.decode().ready());
  EXPECT_TRUE(decode_backend_.stopped_waiting());
  cluster.decode().Stop();  // does not wait for the step
  decode_backend_.Release();
}

// What such a step, or one behind it, still computes goes nowhere: the transport is gone by then.
TEST_F(InstanceTest, AStepThatEndsAfterStopSendsNothing) {
  const RealClock clock;
  struct : RouterPort {
    void Send(RouterId, v1::WorkerMessage) override {}
    void SendToAll(const v1::WorkerMessage&) override {}
  } port;
  struct : transport::KvTransport {
    transport::KvSender& sender() override { return from; }
    transport::KvReceiver& receiver() override { return to; }
    absl::Status CheckDevice(absl::Duration) override { return absl::OkStatus(); }
    FakeSender from;
    FakeReceiver to;
  } transport;
  Instance instance({.core = {.role = v1::ROLE_PREFILL}, .step_limit_min = absl::Milliseconds(200)},
                    prefill_engine_.get(), &transport, nullptr, &clock);
  instance.OnAttached(1);
  prefill_backend_.Hold();  // the first step: of the whole first prompt and a part of the second
  for (const int prompt : {10, 200}) {
    v1::RouterMessage message;
    *message.mutable_admit() = Ask(static_cast<uint64_t>(prompt), prompt, 5);
    message.mutable_admit()->set_attempt(1);
    message.mutable_admit()->set_leg(v1::LEG_PREFILL);
    instance.OnMessage(1, message);
    v1::GrantLease& grant = *message.mutable_grant_lease();
    grant.set_request(static_cast<uint64_t>(prompt));
    grant.set_attempt(1);
    for (int page = 0; page < prompt; page += 64) {
      grant.mutable_lease()->add_pages(static_cast<uint32_t>(page / 64));
    }
    instance.OnMessage(1, message);
  }
  instance.Start(&port);
  while (instance.status().load().kv_pages_free() == 64) absl::SleepFor(absl::Milliseconds(1));
  instance.Stop();
  const auto writes = [&] {
    size_t count = 0;
    for (const auto& [id, transfer] : transport.from.transfers) count += transfer.writes.size();
    return count;
  };
  const size_t before = writes();
  EXPECT_EQ(transport.from.transfers.size(), 2u);
  prefill_backend_.Release();
  engine::StepResult result;
  for (const uint64_t step : {1, 2}) {
    EXPECT_EQ(prefill_engine_->Wait({step}, kSoon, &result), absl::OkStatus());
  }
  EXPECT_EQ(writes(), before);
}

TEST_F(InstanceTest, AnEngineThatFailsEndsAttemptsAndTheInstance) {
  LocalCluster cluster(prefill_engine_.get(), decode_engine_.get());
  decode_backend_.FailNextSample(absl::InternalError("device lost"));
  cluster.Submit(Ask(1, 10, 5));
  EXPECT_EQ(cluster.Wait(1).failure, "REASON_ENGINE");
  const absl::Status ended = cluster.decode().WaitUntilDone(kSoon);
  EXPECT_EQ(ended.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(ended.message()), testing::ContainsRegex("^step [0-9]+: device lost$"));
  EXPECT_FALSE(cluster.decode().ready());
  EXPECT_EQ(cluster.decode().status().state(), "dead");
}

// KV between a prefill and a decode whose memory only a device reaches.
class DeviceInstanceTest : public InstanceTest {
 protected:
  void Start(absl::Duration step_limit_min) {
    cluster_.emplace(prefill_engine_.get(), decode_engine_.get(),
                     LocalCluster::Setup{
                         .step_limit_min = step_limit_min,
                         .prefill_transport = MakeTransport(*prefill_engine_, 1, prefill_device_),
                         .decode_transport = MakeTransport(*decode_engine_, 2, decode_device_)});
  }
  static std::unique_ptr<transport::KvTransport> MakeTransport(
      const engine::Engine& engine, uint64_t incarnation,
      const std::shared_ptr<transport::MemoryMoverFaults>& device) {
    auto made =
        transport::MakeSocketTransport({.memory = KvMemoryOf(engine),
                                        .mover = std::make_unique<transport::MemoryMover>(device),
                                        .incarnation = incarnation});
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }

  const std::shared_ptr<transport::MemoryMoverFaults> prefill_device_ =
      std::make_shared<transport::MemoryMoverFaults>();
  const std::shared_ptr<transport::MemoryMoverFaults> decode_device_ =
      std::make_shared<transport::MemoryMoverFaults>();
  std::optional<LocalCluster> cluster_;
};

// It has never made a step, and never will: nothing but the copy can tell.
TEST_F(DeviceInstanceTest, AnIdleDecodeWhoseDeviceFailsInACopyEnds) {
  Start(absl::Minutes(10));
  decode_device_->Fail();
  cluster_->Submit(Ask(1, 100, 5));
  EXPECT_NE(cluster_->Wait(1).failure, "");
  const absl::Status ended = cluster_->decode().WaitUntilDone(kSoon);
  EXPECT_EQ(ended, absl::InternalError("the device failed"));
  EXPECT_FALSE(cluster_->decode().ready());
  EXPECT_EQ(cluster_->decode().status().state(), "dead");
  EXPECT_EQ(cluster_->decode().steps(), 0u);
  EXPECT_TRUE(cluster_->prefill().ready());
}

TEST_F(DeviceInstanceTest, APrefillWhoseDeviceFailsInACopyEnds) {
  Start(absl::Minutes(10));
  prefill_device_->Fail();
  cluster_->Submit(Ask(1, 100, 5));
  EXPECT_NE(cluster_->Wait(1).failure, "");
  EXPECT_EQ(cluster_->prefill().WaitUntilDone(kSoon), absl::InternalError("the device failed"));
  EXPECT_TRUE(cluster_->decode().ready());
}

TEST_F(DeviceInstanceTest, ACopyThatDoesNotEndIsAFailureOfTheEngine) {
  Start(absl::Milliseconds(500));
  decode_device_->Hold(true);
  cluster_->Submit(Ask(1, 100, 5));
  const absl::Status ended = cluster_->decode().WaitUntilDone(kSoon);
  EXPECT_TRUE(absl::IsDeadlineExceeded(ended)) << ended;
  EXPECT_THAT(std::string(ended.message()),
              testing::ContainsRegex("a copy of KV has not ended for [0-9.]+m?s, the limit is 1s"));
  EXPECT_FALSE(cluster_->decode().ready());
  decode_device_->Hold(false);
}

TEST_F(InstanceTest, DamagedKvIsNoticed) {
  LocalCluster cluster(prefill_engine_.get(), decode_engine_.get());
  cluster.network().CorruptNext(1);
  cluster.Submit(Ask(1, 200, 5));
  EXPECT_EQ(cluster.Wait(1).failure, "REASON_KV_FAILED");
  cluster.Submit(Ask(2, 200, 5));
  EXPECT_EQ(cluster.Wait(2).tokens.size(), 5u);
}

TEST_F(InstanceTest, ARouterThatIsGoneLeavesNothingBehind) {
  LocalCluster cluster(prefill_engine_.get(), decode_engine_.get());
  decode_backend_.Hold();
  for (uint64_t i = 0; i < 8; ++i) cluster.Submit(Ask(i, 100, 500));
  cluster.prefill().OnGone(LocalCluster::kRouter);
  cluster.decode().OnGone(LocalCluster::kRouter);
  decode_backend_.Release();
  for (Instance* instance : {&cluster.prefill(), &cluster.decode()}) {
    instance->BeginDrain();
    EXPECT_EQ(instance->WaitUntilDone(kSoon), absl::OkStatus());
    EXPECT_EQ(instance->status().load().kv_pages_quarantined(), 0u);
  }
}

TEST_F(InstanceTest, AFullMailboxTakesNoMoreFromRouters) {
  const RealClock clock;
  Instance instance({.core = {.role = v1::ROLE_MIXED}, .mailbox_max = 2}, decode_engine_.get(),
                    nullptr, nullptr, &clock);  // not started: nobody looks
  EXPECT_TRUE(instance.OnMessage(1, {}));
  EXPECT_TRUE(instance.OnMessage(1, {}));
  EXPECT_FALSE(instance.OnMessage(1, {}));
}

}  // namespace
}  // namespace sluice::instance
