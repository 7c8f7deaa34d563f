// The instance's real core (services/instance, and in it the real scheduler and prefix cache) over
// an engine whose KV rows are the tokens themselves: a sampled token is a hash of what the
// sequence's pages hold, in every layer. So a page that is reused too early, sent to the wrong
// place, or taken from the cache for another prefix gives a wrong token.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "services/instance/instance_core.h"
#include "services/instance/router_port.h"
#include "tests/sim/sim_instance.h"
#include "tests/sim/sim_world.h"

namespace sluice::sim {

class CoreInstance;

// Who can be reached, by incarnation.
using Network = std::map<uint64_t, CoreInstance*>;

class CoreInstance final : public Instance, private instance::RouterPort {
 public:
  struct Options {
    v1::Hello hello;
    Faults faults;  // hand_back, contradicts, gap, repeats and kv_gap are not for it
  };
  using Say = std::function<void(v1::WorkerMessage)>;

  // The network outlives it.
  CoreInstance(World* world, Options options, Say say, Network* network);
  ~CoreInstance() override;

  v1::Hello hello() const override { return options_.hello; }
  void OnMessage(const v1::RouterMessage& message) override;
  void OnRouterGone() override;
  void OnKv(uint64_t, bool) override {}  // it has a transport of its own
  void Step() override;
  void Heartbeat() override;
  void SetWedged(bool wedged) override { wedged_ = wedged; }
  void BeginDrain() override { core_->BeginDrain(world_->now()); }
  void StopFaults() override { options_.faults = {}; }
  bool idle() const override;

 private:
  class Sender;
  class Receiver;

  void Send(instance::RouterId router, v1::WorkerMessage message) override;
  void SendToAll(const v1::WorkerMessage& message) override { say_(message); }
  engine::StepResult Execute(const engine::StepPlan& plan);
  uint32_t& Row(int64_t layer, int64_t page, int64_t row);

  World* const world_;
  Options options_;
  const Say say_;
  Network* const network_;
  std::vector<uint32_t> kv_;                // [layer][page][row]
  std::vector<int32_t> last_sampled_;       // by slot
  std::deque<engine::StepResult> running_;  // submitted, not read
  std::unique_ptr<Sender> sender_;
  std::unique_ptr<Receiver> receiver_;
  std::unique_ptr<instance::InstanceCore> core_;
  instance::RouterId router_ = 0;
  uint64_t progress_ = 0;
  bool wedged_ = false;
};

}  // namespace sluice::sim
