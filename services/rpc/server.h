// A gRPC server as every service runs it: health, reflection, admin verbs, keepalive. This header
// brings no gRPC header with it.
//
//   Health (grpc.health.v1): "liveness" (this process works), "readiness" (it takes requests), ""
//   and the full name of each service (as readiness). Admin (sluice.v1.Admin): where
//   ServerOptions::admin is given.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/base/cluster_config.h"
#include "sluice/v1/admin.pb.h"

namespace grpc {
class Service;
}

namespace sluice::rpc {

// Called on gRPC's threads, several at a time; they must not block.
struct AdminHandlers {
  std::function<void()> drain;  // as SIGTERM
  std::function<v1::GetStatusResponse()>
      status;  // service, software and uptime are filled in for it
};

struct NamedService {
  std::string name;                  // v1::Balancer::service_full_name(), for health
  grpc::Service* service = nullptr;  // not owned; outlives the server
};

struct ServerOptions {
  std::string address;  // "127.0.0.1:9000"; port 0 takes a free one
  std::vector<NamedService> services;
  std::optional<AdminHandlers> admin;
  std::string role;                  // router, prefill, ...: GetStatus tells it
  int message_bytes_max = 64 << 20;  // of what clients send
  // Above it gRPC reads no more from its connections, and takes no new ones, until memory is free
  // again. 0: no limit.
  uint64_t memory_bytes_max = 0;
  TlsSection tls;  // when enabled; its files are read again within seconds when they change
};

// From any thread.
class Server {
 public:
  // It is live, and not ready at first. Unavailable when the address cannot be had. REQUIRES: the
  // TLS files are right; with wrong ones every handshake fails.
  static absl::StatusOr<std::unique_ptr<Server>> Start(ServerOptions options);
  // As Shutdown(0).
  ~Server();

  int port() const { return port_; }

  void SetReady(bool ready);
  void SetLive(bool live);

  // Takes no more calls, waits so long for those running, then cancels them. Further calls do
  // nothing.
  void Shutdown(absl::Duration grace);

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  int port_ = 0;
};

}  // namespace sluice::rpc
