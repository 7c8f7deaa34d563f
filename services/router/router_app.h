// A whole router: core, edges, and the one thread that both run on.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "services/base/clock.h"
#include "services/base/cluster_config.h"

namespace sluice::router {

struct RouterPorts {
  int http = 0;
  int grpc = 0;
  int attach = 0;
  int admin = 0;
};

class RouterApp {
 public:
  // Loads the tokenizer and listens everywhere; it serves from then on. `drain` is called when an
  // operator asks for it, on some thread, and must not block. The clock outlives the app. Errors
  // have an ExitCode (services/base/program.h).
  static absl::StatusOr<std::unique_ptr<RouterApp>> Start(const ClusterConfig& config,
                                                          const ProcessConfig& process,
                                                          const Clock* clock,
                                                          std::function<void()> drain);
  // Ends everything at once.
  ~RouterApp();

  RouterPorts ports() const;

  // Refuses new requests, lets those running end, for at most `timeout`; tells the clients of those
  // that are left that the router ends, which takes at most two seconds more; then stops. Blocks.
  void Drain(absl::Duration timeout);

 private:
  class Impl;
  explicit RouterApp(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::router
