// UCX with its handles owned: one context, one worker and one listener, and endpoints to other
// workers. What must be known of UCX's settings stays here.
//
// Connections are made through a listener's socket address, not through worker addresses: those are
// wired up by messages that UCX 1.13 must not have queued when a connection is cut (it aborts).
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "ucp/api/ucp.h"

namespace sluice::transport {

class UcxWorker {
 public:
  // Listens on a free port of `host`, an IP address of this machine. Errors as MakeUcxTransport has
  // them.
  static absl::StatusOr<std::unique_ptr<UcxWorker>> Create(const std::string& transports,
                                                           const std::string& net_devices,
                                                           const std::string& host);
  UcxWorker(const UcxWorker&) = delete;
  ~UcxWorker();
  // Puts a worker away for the rest of the process, its endpoints being closed. A listener of UCX
  // 1.13 cannot be destroyed safely: UCX's own thread may be taking in a connection for it.
  static void Retire(std::unique_ptr<UcxWorker> worker);

  ucp_worker_h handle() const { return worker_; }
  // Where others find this worker: "127.0.0.1:40321".
  const std::string& address() const { return address_; }
  // Those who want to connect, since the last call: each must be accepted or rejected.
  std::vector<ucp_conn_request_h> TakeRequests() { return std::exchange(requests_, {}); }

  void Reject(ucp_conn_request_h request) { ucp_listener_reject(listener_, request); }

  // `handler` gets active messages `id`.
  absl::Status Listen(unsigned id, ucp_am_recv_callback_t handler, void* argument);

  // Runs UCX's callbacks; false: there was nothing to do.
  bool Progress() { return ucp_worker_progress(worker_) != 0; }
  // Returns when there may be something to do for UCX, `wake_fd` is readable, or after `timeout`.
  void Sleep(int wake_fd, absl::Duration timeout);

 private:
  UcxWorker() = default;
  absl::Status Start(const std::string& transports, const std::string& net_devices);
  absl::Status ListenOn(const std::string& host);

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  ucp_listener_h listener_ = nullptr;
  std::vector<ucp_conn_request_h> requests_;
  int event_fd_ = -1;  // UCX's
  std::string address_;
};

// A connection to another worker. Not to be destroyed before IsClosed.
class UcxEndpoint {
 public:
  // To the worker at `address`; InvalidArgument when that is none. `on_error` is called by
  // Progress, at most once, when the connection is lost.
  static absl::StatusOr<std::unique_ptr<UcxEndpoint>> Connect(
      UcxWorker* worker, absl::string_view address,
      std::function<void(const absl::Status&)> on_error);
  static absl::StatusOr<std::unique_ptr<UcxEndpoint>> Accept(
      UcxWorker* worker, ucp_conn_request_h request,
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
  static absl::StatusOr<std::unique_ptr<UcxEndpoint>> Create(
      UcxWorker* worker, ucp_ep_params_t params, std::function<void(const absl::Status&)> on_error);

  ucp_ep_h endpoint_ = nullptr;
  ucs_status_ptr_t closing_ = nullptr;
  bool closed_ = false;
  std::function<void(const absl::Status&)> on_error_;
};

// A UCX status as ours: Unavailable, with UCX's text behind `what`.
absl::Status UcxError(absl::string_view what, ucs_status_t status);

}  // namespace sluice::transport
