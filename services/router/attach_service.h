// The router's end of Attach: streams of workers on one side, the core on the other.
//
// gRPC's threads hand every message to the core's thread; no more than kMessagesAheadMax of one
// worker are on their way there, further ones wait in its connection. What the core sends waits in
// a bounded queue of its own for each worker: one that does not keep up loses its stream, and the
// core hears that it is gone.
//
// Threads: Send and Close on the core's thread, service() from any. `post` is called on gRPC's
// threads and must run what it is given on the core's, in order. This header brings no gRPC header.
#pragma once

#include <functional>
#include <memory>

#include "services/base/clock.h"
#include "services/router/router_core.h"
#include "services/router/worker_bus.h"

namespace grpc {
class Service;
}

namespace sluice::router {

using Post = std::function<void(std::function<void()>)>;

class AttachService final : public WorkerBus {
 public:
  static constexpr int kMessagesAheadMax = 64;
  static constexpr int64_t kQueuedMessagesMax = 4096;
  static constexpr int64_t kQueuedBytesMax = 64 << 20;

  // The clock outlives this.
  AttachService(Post post, const Clock* clock);
  // The server must have been shut down, and what was posted must have run or been discarded.
  ~AttachService() override;

  // Before the server starts. The core outlives what was posted.
  void SetCore(RouterCore* core);
  // To be registered with a gRPC server, which must be shut down before this goes.
  grpc::Service* service();

  void Send(WorkerId worker, sluice::v1::RouterMessage message) override;
  void End(WorkerId worker, const absl::Status& why) override;
  // Ends every stream, so that workers go elsewhere, and refuses new ones.
  void Close();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::router
