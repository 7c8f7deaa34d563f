// For tests of the core: a scripted router, an engine that computes nothing, and a clock.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "services/instance/fake_transport.h"
#include "services/instance/instance_core.h"

namespace sluice::instance {

inline constexpr RouterId kRouter = 1;
inline constexpr int64_t kPages = 16;
inline constexpr int64_t kLayers = 2;

class FakeRouters final : public RouterPort {
 public:
  void Send(RouterId router, v1::WorkerMessage message) override {
    sent.emplace_back(router, std::move(message));
  }
  void SendToAll(const v1::WorkerMessage&) override {}
  std::vector<std::pair<RouterId, v1::WorkerMessage>> sent;
};

// One core with its ports, an engine that says token 100 + n for the n-th output, and a clock.
class Harness {
 public:
  explicit Harness(v1::Role role, int64_t kv_pages = kPages, int64_t step_tokens = 64)
      : core_(
            {.role = role,
             .scheduler = {.slots_max = 4,
                           .step_tokens_max = step_tokens,
                           .positions_max = 1024,
                           .kv_pages = kv_pages,
                           .vocab_size = 1000,
                           .requests_max = 8},
             .layers = kLayers,
             .random_seed = 1,
             .kv_timeout = absl::Seconds(20),
             .lease_timeout = absl::Seconds(5),
             .drain_grace = absl::Seconds(10)},
            {.routers = &routers_,
             .sender = &sender_,
             .receiver = &receiver_,
             .on_arrived =
                 [this](const transport::LeaseResult& result) { core_.OnKvArrived(result, now_); },
             .on_sent =
                 [this](transport::TransferId transfer, const absl::Status& status) {
                   core_.OnKvSent(transfer, status, now_);
                 }}) {
    core_.OnRouterAttached(kRouter, now_);
    routers_.sent.clear();
  }

  // Submits what there is to submit.
  bool Submit() {
    bool any = false;
    while (const engine::StepPlan* plan = core_.NextPlan(now_)) {
      engine::StepResult result{.number = plan->number};
      for (const engine::StepChunk& chunk : plan->chunks) {
        if (chunk.sampling == nullptr) continue;
        const int32_t token = 100 + static_cast<int32_t>(chunk.output_position);
        result.slots.push_back({.slot = chunk.slot, .tokens = {{.token_id = token}}});
      }
      in_flight_.push_back(std::move(result));
      any = true;
    }
    return any;
  }
  // Runs the oldest step; before its result is read, `between` happens.
  template <typename Between>
  void FinishStep(Between between) {
    const engine::StepResult result = std::move(in_flight_.front());
    in_flight_.pop_front();
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      core_.kv_push().OnKvWritten(result.number, layer, {});
    }
    between();
    now_ += absl::Milliseconds(10);
    core_.OnStepResult(result, now_);
    core_.OnTick(now_);
  }
  void FinishStep() {
    FinishStep([] {});
  }
  // Until nothing is left to compute.
  void Run() {
    while (Submit() || !in_flight_.empty()) FinishStep();
  }
  void Advance(absl::Duration duration) {
    now_ += duration;
    core_.OnTick(now_);
  }
  void From(const v1::RouterMessage& message, RouterId router = kRouter) {
    core_.OnRouterMessage(router, message, now_);
  }

  // What was sent to a router since the last call.
  std::vector<v1::WorkerMessage> Take(RouterId router = kRouter) {
    std::vector<v1::WorkerMessage> out;
    std::vector<std::pair<RouterId, v1::WorkerMessage>> rest;
    for (auto& [to, message] : routers_.sent) {
      if (to == router) {
        out.push_back(std::move(message));
      } else {
        rest.emplace_back(to, std::move(message));
      }
    }
    routers_.sent = std::move(rest);
    return out;
  }
  // The same without KvEvents.
  std::vector<v1::WorkerMessage> TakeReplies(RouterId router = kRouter) {
    std::vector<v1::WorkerMessage> out = Take(router);
    std::erase_if(out, [](const v1::WorkerMessage& m) { return m.has_kv_events(); });
    return out;
  }
  v1::WorkerMessage TakeOne() {
    const std::vector<v1::WorkerMessage> all = TakeReplies();
    EXPECT_THAT(all, testing::SizeIs(1));
    return all.empty() ? v1::WorkerMessage() : all[0];
  }

  int64_t free_pages() const { return core_.scheduler().kv_pool().num_free(); }
  int64_t quarantined() const { return core_.scheduler().kv_pool().num_quarantined(); }
  absl::Time now() const { return now_; }

  FakeRouters routers_;
  FakeSender sender_;
  FakeReceiver receiver_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
  std::deque<engine::StepResult> in_flight_;
  InstanceCore core_;
};

inline v1::RouterMessage Admit(uint64_t request, v1::Leg leg, int64_t prompt,
                               uint32_t max_tokens = 4, std::vector<uint32_t> outputs = {}) {
  v1::RouterMessage message;
  v1::Admit& admit = *message.mutable_admit();
  admit.set_request(request);
  admit.set_attempt(1);
  admit.set_leg(leg);
  for (int64_t i = 0; i < prompt; ++i) admit.add_prompt_ids(static_cast<uint32_t>(i % 50));
  admit.mutable_output_ids()->Add(outputs.begin(), outputs.end());
  // Named pages, so that the cache keeps them: the hash of page i is i in every byte.
  for (int64_t page = 0; page < (prompt + static_cast<int64_t>(outputs.size())) / 64; ++page) {
    admit.mutable_page_hashes()->append(16, static_cast<char>(page + 1));
  }
  v1::Sampling& sampling = *admit.mutable_sampling();
  sampling.set_top_p(1);
  sampling.set_repetition_penalty(1);
  sampling.set_max_tokens(max_tokens);
  sampling.set_num_logprobs(-1);
  return message;
}

inline v1::RouterMessage Grant(uint64_t request, const v1::Lease& lease) {
  v1::RouterMessage message;
  message.mutable_grant_lease()->set_request(request);
  message.mutable_grant_lease()->set_attempt(1);
  *message.mutable_grant_lease()->mutable_lease() = lease;
  return message;
}

inline v1::RouterMessage Start(uint64_t request, uint32_t first_output,
                               std::vector<uint32_t> tokens) {
  v1::RouterMessage message;
  v1::StartDecode& start = *message.mutable_start_decode();
  start.set_request(request);
  start.set_attempt(1);
  start.set_first_output(first_output);
  start.mutable_token_ids()->Add(tokens.begin(), tokens.end());
  return message;
}

inline v1::RouterMessage Cancel(uint64_t request, uint32_t attempt = 1) {
  v1::RouterMessage message;
  message.mutable_cancel()->set_request(request);
  message.mutable_cancel()->set_attempt(attempt);
  return message;
}

// A lease of `pages` pages from `first_page` on.
inline v1::Lease MakeLease(uint32_t first_page, uint32_t pages) {
  v1::Lease lease;
  lease.set_lease(9);
  lease.set_first_page(first_page);
  for (uint32_t i = 0; i < pages; ++i) lease.add_pages(40 + i);
  return lease;
}

inline std::vector<uint32_t> Tokens(const std::vector<v1::WorkerMessage>& messages) {
  std::vector<uint32_t> out;
  for (const v1::WorkerMessage& message : messages) {
    for (const v1::RequestTokens& tokens : message.step_tokens().requests()) {
      out.insert(out.end(), tokens.token_ids().begin(), tokens.token_ids().end());
    }
  }
  return out;
}

}  // namespace sluice::instance
