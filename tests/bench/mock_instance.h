// An instance as a router sees it, without a model: it speaks Attach (attach_client.h), keeps to
// the protocol of docs/protocol.md, and gives every request that it holds one token a step, on
// time. Like a real instance it sends the tokens of a step in one message, heartbeats every 250 ms,
// and tells which prefix pages it stored.
//
// KV takes no time: a prefill that was granted a lease has sent it with its next step.
//
// Threads: OnMessage comes on gRPC's threads, Step and Heartbeat on one other.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "services/instance/router_port.h"
#include "sluice/v1/control.pb.h"
#include "tests/bench/emit_table.h"

namespace sluice::bench {

struct MockOptions {
  v1::Hello hello;
  // Token ids of the letters a to z.
  std::vector<uint32_t> letters;
  // Where to note when tokens were sent; null: nowhere. Outlives the instance.
  EmitTable* emits = nullptr;
};

class MockInstance final : public instance::RouterListener {
 public:
  // Tells the decode whose incarnation it is that the lease's KV has come: (incarnation, lease).
  using PushKv = std::function<void(uint64_t, uint64_t)>;

  MockInstance(MockOptions options, PushKv push);

  const v1::Hello& hello() const { return options_.hello; }
  // Before the first step and heartbeat, without which routers ask for nothing; outlives them.
  void SetPort(instance::RouterPort* port) { port_ = port; }

  void OnAttached(instance::RouterId router) override;
  bool OnMessage(instance::RouterId router, v1::RouterMessage message) override;
  void OnGone(instance::RouterId router) override;

  void Step();
  void Heartbeat();
  void OnKv(uint64_t lease);

 private:
  using Key = std::pair<uint64_t, uint32_t>;  // request, attempt
  struct Leg {
    v1::Leg leg = v1::LEG_UNSPECIFIED;
    uint64_t seed = 0;
    uint32_t outputs = 0;  // known so far, those of former attempts included
    uint32_t max_tokens = 0;
    uint64_t prompt_tokens = 0;
    std::string page_hashes;
    uint64_t lease = 0;
    uint64_t lease_of = 0;  // prefill: the decode's incarnation
    bool granted = false;
    bool sampled = false;
    bool kv_ready = false;
    bool started = false;
  };

  // All of them: REQUIRES mutex_.
  void Admit(const v1::Admit& admit);
  // True: the leg is over.
  bool StepLeg(const Key& key, Leg* leg, v1::StepTokens* tokens);
  void Sample(const Key& key, Leg* leg, v1::StepTokens* tokens);
  void Store(const std::string& hashes);
  void BeginSnapshot();
  void SendKvEvents();
  uint64_t PagesOf(const Leg& leg) const;
  void Send(v1::WorkerMessage message) { port_->Send(router_, std::move(message)); }

  const MockOptions options_;
  const PushKv push_;
  instance::RouterPort* port_ = nullptr;

  std::mutex mutex_;  // guards all below
  instance::RouterId router_ = 0;
  absl::flat_hash_map<Key, Leg> legs_;
  uint64_t pages_taken_ = 0;
  uint64_t progress_ = 0;
  // What the prefix cache holds, oldest first, and what changed since it was told last.
  std::deque<std::string> stored_;
  absl::flat_hash_set<std::string> is_stored_;
  v1::KvEvents news_;
  uint64_t kv_sequence_ = 0;
  std::vector<uint64_t> seeds_;  // of the tokens in the message under way; kept for its memory
};

}  // namespace sluice::bench
