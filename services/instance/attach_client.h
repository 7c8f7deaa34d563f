// The worker's end of Attach: one long-lived stream to each router, dialled anew with back-off when
// it breaks.
//
// A stream counts as attached once its Welcome has come; only then messages are sent along it. Each
// stream has a bounded queue: a router that lets it overflow loses its stream, so that a worker
// never waits for a router.
//
// Threads: any. The listener is called on gRPC's threads. This header brings no gRPC header with
// it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/instance/router_port.h"
#include "sluice/v1/control.pb.h"

namespace sluice::instance {

struct AttachOptions {
  std::vector<std::string> routers;  // addresses, "127.0.0.1:9001"
  v1::Hello hello;
  // The wait before dialling again doubles from the one to the other, less up to half by chance.
  absl::Duration backoff_min = absl::Milliseconds(100);
  absl::Duration backoff_max = absl::Seconds(3);
  // No Welcome for so long after dialling: dial again.
  absl::Duration welcome_timeout = absl::Seconds(5);
  size_t queue_messages_max = 4096;      // of one stream
  size_t queue_bytes_max = 64ull << 20;  // likewise
  uint64_t random_seed = 0;              // for the back-off
};

class AttachClient final : public RouterPort {
 public:
  // Begins to dial. `listener` must outlive the client.
  AttachClient(AttachOptions options, RouterListener* listener);
  // Breaks what streams there are.
  ~AttachClient() override;

  void Send(RouterId router, v1::WorkerMessage message) override;
  void SendToAll(const v1::WorkerMessage& message) override;
  // Ends dialling, and the streams once what is queued has gone out, or breaks them after `grace`.
  void Close(absl::Duration grace);

  int64_t num_attached() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::instance
