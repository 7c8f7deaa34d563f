// An instance as a router sees it: it keeps to the protocol, makes tokens by a formula instead of a
// model, and breaks in every way that it is told to. It checks what the router says to it.
//
// Death, restarts and what happens to its messages are the cluster's business (sim_cluster.h).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "sluice/v1/control.pb.h"
#include "tests/sim/sim_instance.h"
#include "tests/sim/sim_world.h"

namespace sluice::sim {

class SimWorker final : public Instance {
 public:
  struct Options {
    std::string instance;
    uint64_t incarnation = 0;
    v1::Role role = v1::ROLE_MIXED;
    uint32_t slots = 4;
    uint64_t kv_pages = 64;
    Faults faults;
  };
  using Send = std::function<void(v1::WorkerMessage)>;
  // A transfer of KV to the decode with that incarnation: (incarnation, lease, fails).
  using PushKv = std::function<void(uint64_t, uint64_t, bool)>;

  SimWorker(World* world, Options options, Send send, PushKv push);

  v1::Hello hello() const override;
  void OnMessage(const v1::RouterMessage& message) override;
  void OnKv(uint64_t lease, bool fails) override;
  void Step() override;
  void Heartbeat() override;
  void SetWedged(bool wedged) override { wedged_ = wedged; }
  void BeginDrain() override;
  void OnRouterGone() override { legs_.clear(); }
  void StopFaults() override { options_.faults = {}; }
  bool idle() const override { return legs_.empty(); }

 private:
  using Key = std::pair<uint64_t, uint32_t>;  // request, attempt
  struct Leg {
    v1::Leg leg = v1::LEG_UNSPECIFIED;
    uint64_t hash = kNoTokens;  // of prompt and output
    uint32_t last_token = 0;
    uint64_t outputs = 0;  // known so far, those of former attempts included
    uint64_t first_output = 0;
    uint32_t max_tokens = 0;
    bool wants_logprobs = false;
    uint64_t to_compute = 0;  // tokens of the prompt
    uint64_t pages = 0;
    bool may_hand_back = false;
    uint64_t lease = 0;
    uint64_t lease_of = 0;  // prefill: the decode's incarnation
    bool granted = false;
    bool sampled = false;
    bool kv_sent = false;
    bool kv_ready = false;
    bool started = false;
    absl::Time deadline = absl::InfiniteFuture();
    absl::Time patience;

    uint32_t Next();  // the next output token
  };

  void OnAdmit(const v1::Admit& admit);
  void Refuse(const v1::Admit& admit, v1::Refused::Code code);
  void MaybePush(Leg* leg);
  // True: the leg is over.
  bool StepLeg(const Key& key, Leg* leg, v1::StepTokens* tokens);
  bool Sample(const Key& key, Leg* leg, v1::StepTokens* tokens);
  bool End(const Key& key, v1::AttemptEnded::Reason reason);
  void SendKvEvents();
  uint64_t pages_taken() const;

  World* const world_;
  Options options_;
  const Send send_;
  const PushKv push_;
  std::map<Key, Leg> legs_;
  uint64_t next_lease_ = 1;
  uint64_t progress_ = 0;
  uint64_t kv_sequence_ = 0;
  bool wedged_ = false;
  bool draining_ = false;
};

}  // namespace sluice::sim
