// The balancer's gRPC service and metrics around ExpertLoad. This header brings no gRPC header with
// it.
#pragma once

#include <memory>

#include "services/balancer/expert_load.h"
#include "services/base/clock.h"
#include "services/base/metrics.h"
#include "services/rpc/server.h"

namespace sluice::balancer {

class BalancerService {
 public:
  // Both outlive the service.
  BalancerService(ExpertLoadOptions options, const Clock* clock, Metrics* metrics);
  ~BalancerService();  // REQUIRES: the server that has it is shut down

  rpc::NamedService service();
  v1::GetStatusResponse Status() const;
  // Brings the metrics up to date; called now and then.
  void UpdateMetrics();

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::balancer
