// Tells the balancer once a second how many tokens each expert got. What it proposes in return is
// not listened to: placements do not change yet.
//
// A balancer that is not there is dialled again every second and delays nobody; what was counted in
// the meantime goes with the next report. This header brings no gRPC header with it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "services/model/model_config.h"
#include "sluice/v1/balancer.pb.h"

namespace grpc {
class ClientContext;
}

namespace sluice::instance {

struct LoadSource {
  // engine::Engine::TakeExpertLoad.
  std::function<void(std::vector<int64_t>*)> take;
  std::function<uint64_t()> steps;  // since the start
};

// Adds the MoE layers of `load`, [layers, experts] as the engine counts, to the report.
void AddLayers(const model::ModelConfig& config, const std::vector<int64_t>& load,
               v1::ExpertLoadReport* report);

class LoadReporter {
 public:
  // `identity` has what is the same in every report. `source` is called on the reporter's thread.
  LoadReporter(std::string address, v1::ExpertLoadReport identity, const model::ModelConfig& config,
               LoadSource source);
  ~LoadReporter();

 private:
  void Run();
  void ReportUntilBroken();
  bool WaitASecond();  // false: it is to end

  const std::string address_;
  const v1::ExpertLoadReport identity_;
  const model::ModelConfig config_;
  const LoadSource source_;
  uint64_t reported_steps_ = 0;

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  grpc::ClientContext* call_ = nullptr;  // the one that runs
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace sluice::instance
