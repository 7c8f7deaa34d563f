// An instance at work: one thread that owns the core and keeps the engine supplied one step ahead,
// with everything from outside coming to it through a bounded mailbox; one that waits for steps;
// one that tells routers every 250 ms that it lives, however long a step takes.
//
// The counter that heartbeats carry is advanced by the loop alone: by each step that has ended, and
// while no step runs by each pass (at least two a second). A step that never ends stops it, and
// after StepLimit() counts as a failure of the engine. So does a device that fails in a copy of KV,
// or does not end one while two such steps may have run, also when no step runs at all.
//
// Threads: any. It knows nothing of gRPC.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/base/clock.h"
#include "services/engine/engine.h"
#include "services/instance/instance_core.h"
#include "services/instance/instance_metrics.h"
#include "services/instance/router_port.h"
#include "services/transport/kv_transfer.h"
#include "sluice/v1/admin.pb.h"
#include "sluice/v1/control.pb.h"

namespace sluice::instance {

struct InstanceOptions {
  CoreOptions core;  // scheduler's sizes and layers are taken from the engine
  int64_t waiting_requests_max = 256;
  absl::Duration heartbeat = absl::Milliseconds(250);
  // StepLimit() is not less: the first step of a large model reads its weights from a disk.
  absl::Duration step_limit_min = absl::Minutes(10);
  size_t mailbox_max = 1 << 16;  // events; then a router's messages are not taken any more
};

// How KV of `engine` looks to a transport.
transport::KvMemory KvMemoryOf(const engine::Engine& engine);
// How much the engine holds, as routers are told.
v1::Capacity CapacityOf(const engine::Engine& engine);

class Instance final : public RouterListener {
 public:
  // `engine` must outlive the instance and be used by it alone. `transport` may be null when no leg
  // moves KV; it must outlive Stop(). `metrics` may be null.
  Instance(const InstanceOptions& options, engine::Engine* engine,
           transport::KvTransport* transport, InstanceMetrics* metrics, const Clock* clock);
  ~Instance() override;

  // Begins to work. `routers` must outlive Stop().
  void Start(RouterPort* routers);

  void OnAttached(RouterId router) override;
  bool OnMessage(RouterId router, v1::RouterMessage message) override;
  void OnGone(RouterId router) override;

  // Takes no new work; hands back what has not ended after core.drain_grace.
  void BeginDrain();
  // Returns when it has drained (Ok) or the engine has failed; DeadlineExceeded before that.
  absl::Status WaitUntilDone(absl::Duration timeout);
  // Ends the threads. No event is looked at any more, and the transport is not used. Waits for the
  // steps in flight, for each no longer than StepLimit().
  void Stop();

  bool ready() const;
  v1::InstanceStatus status() const;  // name and role are left to the caller
  uint64_t steps() const { return steps_.load(); }

 private:
  struct Attached {
    RouterId router;
  };
  struct Gone {
    RouterId router;
  };
  struct Message {
    RouterId router;
    v1::RouterMessage message;
  };
  struct KvSent {
    transport::TransferId transfer;
    absl::Status status;
  };
  struct StepDone {
    absl::Status status;
    engine::StepResult result;
  };
  struct Drain {};
  using Event =
      std::variant<Attached, Gone, Message, transport::LeaseResult, KvSent, StepDone, Drain>;

  // Outlives the instance where callbacks of the transport hold it.
  struct Mailbox {
    std::mutex mutex;  // guards all below
    std::condition_variable changed;
    std::deque<Event> events;
    bool stopping = false;

    void Post(Event event);
  };

  CorePorts MakePorts(transport::KvTransport* transport);
  void Loop();
  void Handle(Event event, absl::Time now);
  void OnStepDone(StepDone done, absl::Time now);
  void CheckTransport(absl::Time now);
  void SubmitPlans(absl::Time now);
  void Publish(absl::Time now);
  void UpdateRates(absl::Time now);
  // Which kernels serve which ops: to the log when one is new, and to the metrics.
  void TellKernels();
  void WaitForSteps();
  // How long a step may take before it is taken not to end: far more than any has taken of late.
  // Routers go elsewhere long before. REQUIRES mutex_.
  absl::Duration StepLimit() const;
  void SendHeartbeats();
  void FailEngine(const absl::Status& status, absl::Time now);

  // Hands the core's messages on, from Start on.
  class Outbox final : public RouterPort {
   public:
    void Send(RouterId router, v1::WorkerMessage message) override {
      port->Send(router, std::move(message));
    }
    void SendToAll(const v1::WorkerMessage& message) override { port->SendToAll(message); }
    RouterPort* port = nullptr;
  };

  const InstanceOptions options_;
  engine::Engine* const engine_;
  transport::KvTransport* const transport_;
  InstanceMetrics* const metrics_;
  const Clock* const clock_;
  const std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  Outbox outbox_;
  std::unique_ptr<InstanceCore> core_;  // the loop's, once started
  bool failed_ = false;                 // likewise
  absl::Time published_ = absl::InfinitePast();
  bool unpublished_ = true;  // something has happened since
  bool published_draining_ = false;
  size_t kernels_told_ = 0;
  struct Rates {
    double prompt = 0;  // tokens per second
    double output = 0;
    absl::Time since = absl::InfinitePast();
    CoreCounters sums;  // as they stood then
  } rates_;

  std::atomic<uint64_t> progress_{0};
  std::atomic<uint64_t> steps_{0};

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::deque<engine::StepHandle> submitted_;
  v1::Heartbeat heartbeat_;
  std::optional<absl::Status> done_;
  bool stopping_ = false;

  std::thread loop_, waiter_, heart_;
};

}  // namespace sluice::instance
