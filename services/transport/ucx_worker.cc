#include "services/transport/ucx_worker.h"

#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <ucs/config/global_opts.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice::transport {
namespace {

// Settings that differ from UCX's own, unless the environment says otherwise (UCX_<name>).
struct Setting {
  const char* name;
  const char* value;
};
constexpr Setting kSettings[] = {
    // Segments of 8 KiB, the default, cost half of TCP's speed and more.
    {"TCP_TX_SEG_SIZE", "512k"},
    {"TCP_RX_SEG_SIZE", "512k"},
    // How soon an idle connection's end is noticed; a busy one's is by our own pings.
    {"KEEPALIVE_INTERVAL", "1s"},
    // 4 MiB of shared memory instead of 512 KiB: a receiver that had to wait for its processor
    // still
    // finds something to do.
    {"MM_FIFO_SIZE", "512"},
    // Without it UCX offers no shared memory to connections that must notice a dead peer.
    {"MM_ERROR_HANDLING", "y"},
};

constexpr absl::Duration kNap = absl::Microseconds(30);

absl::Status Set(ucp_config_t* config, const char* name, const char* value) {
  const ucs_status_t status = ucp_config_modify(config, name, value);
  if (status == UCS_OK) return absl::OkStatus();
  return UcxError(absl::StrCat("UCX does not take ", value, " for UCX_", name), status);
}

// Of an IP address and a port.
class SocketAddress {
 public:
  absl::Status Parse(const std::string& host, const std::string& port) {
    addrinfo hints = {}, *found = nullptr;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;  // nothing that asks a name server
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", host, "\", port \"", port, "\": not an IP address and a port"));
    }
    std::memcpy(&storage_, found->ai_addr, found->ai_addrlen);
    size_ = found->ai_addrlen;
    freeaddrinfo(found);
    return absl::OkStatus();
  }
  ucs_sock_addr_t view() const {
    return {.addr = reinterpret_cast<const sockaddr*>(&storage_), .addrlen = size_};
  }

 private:
  sockaddr_storage storage_ = {};
  socklen_t size_ = 0;
};

}  // namespace

absl::Status UcxError(absl::string_view what, ucs_status_t status) {
  return absl::UnavailableError(absl::StrCat(what, ": ", ucs_status_string(status)));
}

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Create(const std::string& transports,
                                                             const std::string& net_devices,
                                                             const std::string& host) {
  auto worker = std::unique_ptr<UcxWorker>(new UcxWorker);
  SLUICE_RETURN_IF_ERROR(worker->Start(transports, net_devices));
  SLUICE_RETURN_IF_ERROR(worker->ListenOn(host));
  return worker;
}

absl::Status UcxWorker::Start(const std::string& transports, const std::string& net_devices) {
  // Errors come to us as statuses; a peer's death is not worth a page of log.
  if (std::getenv("UCX_LOG_LEVEL") == nullptr) ucs_global_opts_set_value("LOG_LEVEL", "fatal");
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) {
    return UcxError(
        "UCX cannot read its configuration; look for wrong UCX_* variables in the "
        "environment",
        status);
  }
  const auto release = absl::MakeCleanup([&] { ucp_config_release(config); });
  for (const Setting& setting : kSettings) {
    if (std::getenv(absl::StrCat("UCX_", setting.name).c_str()) != nullptr) continue;
    SLUICE_RETURN_IF_ERROR(Set(config, setting.name, setting.value));
  }
  if (!transports.empty()) SLUICE_RETURN_IF_ERROR(Set(config, "TLS", transports.c_str()));
  if (!net_devices.empty()) SLUICE_RETURN_IF_ERROR(Set(config, "NET_DEVICES", net_devices.c_str()));

  ucp_params_t params = {};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  status = ucp_init(&params, config, &context_);
  if (status != UCS_OK) {
    return UcxError(absl::StrCat("UCX cannot start with transports \"", transports,
                                 "\" and devices \"", net_devices,
                                 "\" (empty: UCX_TLS, UCX_NET_DEVICES or all); see that they exist "
                                 "on this host and that /dev/shm is writable"),
                    status);
  }
  ucp_worker_params_t worker_params = {};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  status = ucp_worker_create(context_, &worker_params, &worker_);
  if (status != UCS_OK) {
    return UcxError(
        "UCX cannot make a worker; see that /dev/shm has room and that enough files may "
        "be open (ulimit -n)",
        status);
  }
  status = ucp_worker_get_efd(worker_, &event_fd_);
  if (status != UCS_OK) {
    return UcxError(
        "UCX's transports cannot wake a sleeping thread; choose others than "
        "the present ones",
        status);
  }
  return absl::OkStatus();
}

absl::Status UcxWorker::ListenOn(const std::string& host) {
  SocketAddress address;
  SLUICE_RETURN_IF_ERROR(address.Parse(host, "0"));
  ucp_listener_params_t params = {};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr = address.view();
  params.conn_handler.cb = [](ucp_conn_request_h request, void* self) {
    static_cast<UcxWorker*>(self)->requests_.push_back(request);
  };
  params.conn_handler.arg = this;
  ucs_status_t status = ucp_listener_create(worker_, &params, &listener_);
  if (status != UCS_OK) {
    return UcxError(
        absl::StrCat("UCX cannot listen on ", host, "; see that it is an address of this machine"),
        status);
  }
  ucp_listener_attr_t attributes = {};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  status = ucp_listener_query(listener_, &attributes);
  if (status != UCS_OK) return UcxError("UCX cannot tell the port that it listens on", status);
  // The port lies at the same place in IPv4 and IPv6 addresses.
  const auto* bound = reinterpret_cast<const sockaddr_in*>(&attributes.sockaddr);
  address_ = absl::StrCat(host, ":", ntohs(bound->sin_port));
  return absl::OkStatus();
}

UcxWorker::~UcxWorker() {
  if (listener_ != nullptr) ucp_listener_destroy(listener_);
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  if (context_ != nullptr) ucp_cleanup(context_);
}

void UcxWorker::Retire(std::unique_ptr<UcxWorker> worker) {
  static std::mutex mutex;
  static auto* const retired = new std::vector<std::unique_ptr<UcxWorker>>;  // never destroyed
  const std::lock_guard lock(mutex);
  retired->push_back(std::move(worker));
}

absl::Status UcxWorker::Listen(unsigned id, ucp_am_recv_callback_t handler, void* argument) {
  ucp_am_handler_param_t params = {};
  params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  params.id = id;
  params.flags = UCP_AM_FLAG_WHOLE_MSG;
  params.cb = handler;
  params.arg = argument;
  const ucs_status_t status = ucp_worker_set_am_recv_handler(worker_, &params);
  return status == UCS_OK ? absl::OkStatus() : UcxError("UCX has no active messages", status);
}

void UcxWorker::Sleep(int wake_fd, absl::Duration timeout) {
  pollfd fds[] = {{.fd = wake_fd, .events = POLLIN, .revents = 0},
                  {.fd = event_fd_, .events = POLLIN, .revents = 0}};
  // UCX cannot be armed while something has just come, nor while shared memory is full: the one is
  // gone after a look at it; the other has no event, and would keep this thread spinning.
  nfds_t count = 2;
  if (ucp_worker_arm(worker_) != UCS_OK) {
    count = 1;
    timeout = kNap;
  }
  const timespec limit = absl::ToTimespec(timeout);
  ppoll(fds, count, &limit, nullptr);
}

absl::StatusOr<std::unique_ptr<UcxEndpoint>> UcxEndpoint::Connect(
    UcxWorker* worker, absl::string_view address,
    std::function<void(const absl::Status&)> on_error) {
  const size_t colon = address.rfind(':');
  SocketAddress socket;
  SLUICE_RETURN_IF_ERROR(
      socket.Parse(std::string(address.substr(0, colon)),
                   colon == absl::string_view::npos ? "" : std::string(address.substr(colon + 1))));
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr = socket.view();
  return Create(worker, params, std::move(on_error));
}

absl::StatusOr<std::unique_ptr<UcxEndpoint>> UcxEndpoint::Accept(
    UcxWorker* worker, ucp_conn_request_h request,
    std::function<void(const absl::Status&)> on_error) {
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = request;
  return Create(worker, params, std::move(on_error));
}

absl::StatusOr<std::unique_ptr<UcxEndpoint>> UcxEndpoint::Create(
    UcxWorker* worker, ucp_ep_params_t params, std::function<void(const absl::Status&)> on_error) {
  auto endpoint = std::unique_ptr<UcxEndpoint>(new UcxEndpoint);
  endpoint->on_error_ = std::move(on_error);
  params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = [](void* argument, ucp_ep_h, ucs_status_t status) {
    auto* self = static_cast<UcxEndpoint*>(argument);
    if (self->on_error_ != nullptr) {
      std::exchange(self->on_error_, nullptr)(UcxError("the connection is lost", status));
    }
  };
  params.err_handler.arg = endpoint.get();
  const ucs_status_t status = ucp_ep_create(worker->handle(), &params, &endpoint->endpoint_);
  if (status != UCS_OK) {
    endpoint->closed_ = true;
    return UcxError("UCX cannot connect", status);
  }
  return endpoint;
}

UcxEndpoint::~UcxEndpoint() {
  if (closing_ != nullptr) ucp_request_free(closing_);
}

bool UcxEndpoint::Send(unsigned id, absl::string_view header, absl::string_view data,
                       uint32_t flags) {
  // UCX reads both until the message has left.
  struct Message {
    std::string header, data;
  };
  auto message = std::make_unique<Message>(Message{std::string(header), std::string(data)});
  ucp_request_param_t params = {};
  params.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = UCP_AM_SEND_FLAG_EAGER | flags;
  params.cb.send = [](void* request, ucs_status_t, void* user_data) {
    delete static_cast<Message*>(user_data);
    ucp_request_free(request);
  };
  params.user_data = message.get();
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(endpoint_, id, message->header.data(), message->header.size(),
                      message->data.data(), message->data.size(), &params);
  if (UCS_PTR_IS_ERR(request)) return false;
  if (request != nullptr) message.release();
  return true;
}

void UcxEndpoint::Close() {
  if (closed_ || closing_ != nullptr) return;
  on_error_ = nullptr;
  ucp_request_param_t params = {};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = UCP_EP_CLOSE_FLAG_FORCE;
  closing_ = ucp_ep_close_nbx(endpoint_, &params);
  if (closing_ == nullptr || UCS_PTR_IS_ERR(closing_)) {
    closing_ = nullptr;
    closed_ = true;
  }
}

bool UcxEndpoint::IsClosed() {
  if (!closed_ && closing_ != nullptr && ucp_request_check_status(closing_) != UCS_INPROGRESS) {
    ucp_request_free(std::exchange(closing_, nullptr));
    closed_ = true;
  }
  return closed_;
}

}  // namespace sluice::transport
