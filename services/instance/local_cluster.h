// For tests: a prefill and a decode with real engines and threads, KV between them in memory, and a
// router that does what one does when nothing fails.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "services/base/clock.h"
#include "services/engine/engine.h"
#include "services/instance/instance.h"
#include "services/transport/in_process.h"

namespace sluice::instance {

class LocalCluster {
 public:
  struct Answer {
    std::vector<int32_t> tokens;
    std::vector<float> logprobs;
    bool done = false;
    std::string failure;  // why a leg was refused or ended, if one was
    uint32_t cached_tokens = 0;
    int64_t kv_bytes = 0;
  };

  struct Setup {
    absl::Duration heartbeat = absl::Milliseconds(250);
    absl::Duration step_limit_min = absl::Minutes(10);
    // Null: KV travels in memory.
    std::unique_ptr<transport::KvTransport> prefill_transport, decode_transport;
  };

  // The engines outlive the cluster.
  LocalCluster(engine::Engine* prefill, engine::Engine* decode)
      : LocalCluster(prefill, decode, {}) {}
  LocalCluster(engine::Engine* prefill, engine::Engine* decode, Setup setup)
      : prefill_transport_(setup.prefill_transport != nullptr
                               ? std::move(setup.prefill_transport)
                               : network_.Join(KvMemoryOf(*prefill), 1)),
        decode_transport_(setup.decode_transport != nullptr
                              ? std::move(setup.decode_transport)
                              : network_.Join(KvMemoryOf(*decode), 2)),
        prefill_(Options(v1::ROLE_PREFILL, setup), prefill, prefill_transport_.get(), nullptr,
                 &clock_),
        decode_(Options(v1::ROLE_DECODE, setup), decode, decode_transport_.get(), nullptr, &clock_),
        from_prefill_(this, true),
        from_decode_(this, false) {
    for (Instance* instance : {&prefill_, &decode_}) instance->OnAttached(kRouter);
    prefill_.Start(&from_prefill_);
    decode_.Start(&from_decode_);
  }
  ~LocalCluster() {
    prefill_.Stop();
    decode_.Stop();
  }

  // `admit` without leg and attempt.
  void Submit(v1::Admit admit) {
    // Replies are looked at when both legs have been asked.
    const std::lock_guard lock(mutex_);
    answers_[admit.request()];
    admit.set_attempt(1);
    v1::RouterMessage message;
    *message.mutable_admit() = std::move(admit);
    message.mutable_admit()->set_leg(v1::LEG_PREFILL);
    prefill_.OnMessage(kRouter, message);
    message.mutable_admit()->set_leg(v1::LEG_DECODE);
    decode_.OnMessage(kRouter, std::move(message));
  }
  // When the answer is there, or a leg has failed.
  Answer Wait(uint64_t request) {
    std::unique_lock lock(mutex_);
    changed_.wait(
        lock, [&] { return answers_.at(request).done || !answers_.at(request).failure.empty(); });
    return answers_.at(request);
  }
  // Until so many heartbeats of the decode have come after this call; gives the last one's
  // progress.
  uint64_t WaitForHeartbeats(int count) {
    std::unique_lock lock(mutex_);
    const int until = heartbeats_ + count;
    changed_.wait(lock, [&] { return heartbeats_ >= until; });
    return progress_;
  }

  Instance& prefill() { return prefill_; }
  Instance& decode() { return decode_; }
  transport::InProcessNetwork& network() { return network_; }

  static constexpr RouterId kRouter = 1;

 private:
  class Port final : public RouterPort {
   public:
    Port(LocalCluster* cluster, bool prefill) : cluster_(cluster), prefill_(prefill) {}
    void Send(RouterId, v1::WorkerMessage message) override {
      cluster_->OnMessage(prefill_, message);
    }
    void SendToAll(const v1::WorkerMessage& message) override {
      cluster_->OnMessage(prefill_, message);
    }

   private:
    LocalCluster* const cluster_;
    const bool prefill_;
  };

  static InstanceOptions Options(v1::Role role, const Setup& setup) {
    return {.core = {.role = role, .random_seed = 1},
            .heartbeat = setup.heartbeat,
            .step_limit_min = setup.step_limit_min};
  }

  void OnMessage(bool prefill, const v1::WorkerMessage& message) {
    const std::lock_guard lock(mutex_);
    if (message.has_leased()) {
      v1::RouterMessage reply;
      v1::GrantLease& grant = *reply.mutable_grant_lease();
      grant.set_request(message.leased().request());
      grant.set_attempt(1);
      *grant.mutable_lease() = message.leased().lease();
      prefill_.OnMessage(kRouter, std::move(reply));
    } else if (message.has_step_tokens()) {
      for (const v1::RequestTokens& tokens : message.step_tokens().requests()) {
        OnTokens(prefill, tokens);
      }
    } else if (message.has_kv_ready()) {
      answers_.at(message.kv_ready().request()).kv_bytes =
          static_cast<int64_t>(message.kv_ready().bytes());
    } else if (message.has_refused()) {
      answers_.at(message.refused().request()).failure = message.refused().reason();
    } else if (message.has_attempt_ended()) {
      answers_.at(message.attempt_ended().request()).failure =
          v1::AttemptEnded::Reason_Name(message.attempt_ended().reason());
    } else if (message.has_heartbeat() && !prefill) {
      ++heartbeats_;
      progress_ = message.heartbeat().progress();
    }
    changed_.notify_all();
  }

  void OnTokens(bool prefill, const v1::RequestTokens& tokens) {
    Answer& answer = answers_.at(tokens.request());
    answer.tokens.insert(answer.tokens.end(), tokens.token_ids().begin(), tokens.token_ids().end());
    for (const v1::TokenLogprobs& logprobs : tokens.logprobs()) {
      answer.logprobs.push_back(logprobs.logprob());
    }
    answer.done = tokens.finish() != v1::FINISH_UNSPECIFIED;
    if (!prefill) return;
    answer.cached_tokens = tokens.cached_tokens();
    v1::RouterMessage reply;
    if (answer.done) {
      reply.mutable_cancel()->set_request(tokens.request());
      reply.mutable_cancel()->set_attempt(1);
    } else {
      v1::StartDecode& start = *reply.mutable_start_decode();
      start.set_request(tokens.request());
      start.set_attempt(1);
      start.set_first_output(tokens.first_output());
      *start.mutable_token_ids() = tokens.token_ids();
    }
    decode_.OnMessage(kRouter, std::move(reply));
  }

  const RealClock clock_;
  transport::InProcessNetwork network_{{}};
  std::mutex mutex_;  // guards answers and counts
  std::condition_variable changed_;
  std::map<uint64_t, Answer> answers_;
  int heartbeats_ = 0;
  uint64_t progress_ = 0;

  std::unique_ptr<transport::KvTransport> prefill_transport_, decode_transport_;
  Instance prefill_, decode_;
  Port from_prefill_, from_decode_;
};

}  // namespace sluice::instance
