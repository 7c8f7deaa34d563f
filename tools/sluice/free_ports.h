// Ports for a cluster file that leaves some of them open (0).
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "services/base/cluster_config.h"

namespace sluice::cli {

// Keeps the chosen ports from being given to others: bound, never listened on, so that programs
// that set SO_REUSEADDR (all of ours) can still have them.
class HeldPorts {
 public:
  HeldPorts() = default;
  ~HeldPorts();
  HeldPorts(const HeldPorts&) = delete;
  HeldPorts& operator=(const HeldPorts&) = delete;

  // Unavailable when a port that the configuration names cannot be had. Puts free ports in place of
  // every 0 in `config`; where a section has several processes, a run of ports with the distances
  // that Processes() puts between them. Unavailable when there is none.
  absl::Status Fill(ClusterConfig* config);

 private:
  absl::Status FillOne(Address* address, int count, int stride);

  std::vector<int> fds_;
};

}  // namespace sluice::cli
