// One router core and its instances on simulated streams, which keep order but may be slow, stand
// still and break; processes that die, freeze and come back; clients that come, cancel and run out
// of time. Everything follows from the seed.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "services/router/router_core.h"
#include "tests/sim/core_instance.h"
#include "tests/sim/sim_instance.h"
#include "tests/sim/sim_worker.h"
#include "tests/sim/sim_world.h"

namespace sluice::sim {

struct ClusterOptions {
  uint64_t seed = 0;
  int prefills = 2;
  int decodes = 2;
  int mixed = 0;
  int requests = 150;
  absl::Duration duration = absl::Seconds(40);  // requests and faults come in this time
  bool faults = true;
  bool real_cores = false;  // services/instance instead of SimWorker
  int64_t queued_requests_max = 32;
};

// What happened, summed up by name: so that a test can ask whether what it is about came up at all.
using Tally = std::map<std::string, int64_t>;

class Cluster final : public router::WorkerBus {
 public:
  explicit Cluster(const ClusterOptions& options);
  ~Cluster() override;

  // Until every request has ended and the cluster has come to rest. Expectations fail on the way.
  void Run();
  const Tally& tally() const { return tally_; }

  void Send(router::WorkerId worker, v1::RouterMessage message) override;
  void End(router::WorkerId worker, const absl::Status& why) override;

 private:
  class Probe;
  class Client;
  // One process; it has a stream, or will have one again.
  struct Process {
    SimWorker::Options options;
    std::unique_ptr<Instance> instance;  // null while it is dead
    router::WorkerId stream = 0;
    bool frozen = false;  // by SIGSTOP: takes nothing in, says nothing
    bool cut = false;     // from the router, though both live
    std::deque<v1::RouterMessage> to_worker;
    std::deque<v1::WorkerMessage> to_router;
  };

  void StartProcess(Process* process);
  void Dial(Process* process);
  void Kill(Process* process, absl::Duration down);
  // What stands in the way of messages may be gone.
  void Flush(Process* process);
  void FlushToWorker(Process* process);
  void FlushToRouter(Process* process);
  void OnWorkerSays(Process* process, uint64_t incarnation, v1::WorkerMessage message);
  // After the time that a message takes, if the stream is still the same.
  void Later(Process* process, std::function<void()> event);
  void PushKv(uint64_t incarnation, uint64_t lease, bool fails);
  void RunProcess(Process* process);
  void Tick();
  void MaybeBreakSomething();
  void StopFaults();
  void Submit(Client* client);
  void CheckCounts();
  bool over() const { return world_.now() >= end_; }

  const ClusterOptions options_;
  World world_;
  const absl::Time end_;
  Tally tally_;
  std::unique_ptr<Probe> probe_;
  std::unique_ptr<router::RouterCore> core_;
  Network network_;  // before the processes, which leave it
  std::vector<std::unique_ptr<Process>> processes_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::map<uint64_t, uint32_t> excused_;  // request -> attempts that ended without having failed
  router::WorkerId next_stream_ = 1;
  uint64_t next_incarnation_ = 1;
  absl::Time router_stalled_until_ = absl::InfinitePast();
};

}  // namespace sluice::sim
