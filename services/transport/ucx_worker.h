// UCX with its handles owned: one context and one worker, and endpoints to other workers. What must
// be known of UCX's settings stays here.
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "ucp/api/ucp.h"

namespace sluice::transport {

class UcxWorker {
 public:
  // Errors as MakeUcxTransport has them.
  static absl::StatusOr<std::unique_ptr<UcxWorker>> Create(const std::string& transports,
                                                           const std::string& net_devices);
  UcxWorker(const UcxWorker&) = delete;
  ~UcxWorker();

  ucp_worker_h handle() const { return worker_; }
  // Where others find this worker.
  const std::string& address() const { return address_; }

  // `handler` gets active messages `id`.
  absl::Status Listen(unsigned id, ucp_am_recv_callback_t handler, void* argument);

  // Runs UCX's callbacks; false: there was nothing to do.
  bool Progress() { return ucp_worker_progress(worker_) != 0; }
  // Returns when there may be something to do for UCX, `wake_fd` is readable, or after `timeout`.
  void Sleep(int wake_fd, absl::Duration timeout);

 private:
  UcxWorker() = default;
  absl::Status Start(const std::string& transports, const std::string& net_devices);

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;  // UCX's
  std::string address_;
};

// A connection to another worker. Not to be destroyed before IsClosed.
class UcxEndpoint {
 public:
  // `on_error` is called by Progress, at most once, when the connection is lost.
  static absl::StatusOr<std::unique_ptr<UcxEndpoint>> Connect(
      UcxWorker* worker, absl::string_view address,
      std::function<void(const absl::Status&)> on_error);
  UcxEndpoint(const UcxEndpoint&) = delete;
  ~UcxEndpoint();

  ucp_ep_h handle() const { return endpoint_; }

  // Sends a message of a few bytes, which is copied. False: it could not be sent; the connection is
  // lost or about to be.
  bool Send(unsigned id, absl::string_view header, absl::string_view data = {}, uint32_t flags = 0);

  // Cuts the connection: requests on it complete, with errors, while UCX makes progress.
  void Close();
  bool IsClosed();

 private:
  UcxEndpoint() = default;

  UcxWorker* worker_ = nullptr;
  ucp_ep_h endpoint_ = nullptr;
  ucs_status_ptr_t closing_ = nullptr;
  bool closed_ = false;
  std::function<void(const absl::Status&)> on_error_;
};

// A UCX status as ours: Unavailable, with UCX's text behind `what`.
absl::Status UcxError(absl::string_view what, ucs_status_t status);

}  // namespace sluice::transport
