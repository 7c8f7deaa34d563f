#include "services/rpc/server.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "grpc/health/v1/health.pb.h"
#include "grpc/support/log.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "services/base/log.h"
#include "services/base/version.h"
#include "services/rpc/status.h"
#include "sluice/v1/admin.grpc.pb.h"

namespace sluice::rpc {
namespace {

constexpr int kKeepaliveTimeMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kHandshakeTimeoutMs = 10'000;
constexpr unsigned kTlsRefreshSeconds = 1;

// gRPC's own messages become lines of the log. An error may be the assertion that ends the process;
// that a client's TLS handshake failed is the client's affair.
void LogForGrpc(gpr_log_func_args* arguments) {
  const bool of_client = absl::StrContains(arguments->file, "ssl_transport_security");
  const LogLevel level = arguments->severity == GPR_LOG_SEVERITY_INFO || of_client
                             ? LogLevel::kDebug
                         : arguments->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kError
                                                                         : LogLevel::kTrace;
  Log(level, "grpc",
      {{"message", arguments->message},
       {"at", absl::StrCat(arguments->file, ":", arguments->line)}});
}

std::shared_ptr<grpc::ServerCredentials> Credentials(const TlsSection& tls) {
  if (!tls.enabled()) return grpc::InsecureServerCredentials();
  namespace experimental = grpc::experimental;
  experimental::TlsServerCredentialsOptions options(
      std::make_shared<experimental::FileWatcherCertificateProvider>(
          tls.key, tls.certificate, tls.client_ca, kTlsRefreshSeconds));
  options.watch_identity_key_cert_pairs();
  if (!tls.client_ca.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return experimental::TlsServerCredentials(options);
}

class AdminService final : public v1::Admin::CallbackService {
 public:
  AdminService(AdminHandlers handlers, std::string role)
      : handlers_(std::move(handlers)), role_(std::move(role)) {}

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                  v1::DrainResponse*) override {
    LogInfo("drain asked for", {{"peer", context->peer()}});
    handlers_.drain();
    return Finish(context, absl::OkStatus());
  }

  grpc::ServerUnaryReactor* SetLogLevel(grpc::CallbackServerContext* context,
                                        const v1::SetLogLevelRequest* request,
                                        v1::SetLogLevelResponse* response) override {
    const absl::StatusOr<LogLevel> level = ParseLogLevel(request->level());
    if (level.ok()) {
      response->set_previous(std::string(LogLevelName(sluice::SetLogLevel(*level))));
      LogInfo("log level changed", {{"to", LogLevelName(*level)}, {"peer", context->peer()}});
    }
    return Finish(context, level.status());
  }

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const v1::GetStatusRequest*,
                                      v1::GetStatusResponse* response) override {
    *response = handlers_.status();
    response->set_service(role_);
    response->set_software(std::string(SoftwareVersion()));
    response->set_uptime_seconds(absl::ToDoubleSeconds(absl::Now() - start_));
    return Finish(context, absl::OkStatus());
  }

 private:
  static grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context,
                                          const absl::Status& status) {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(status));
    return reactor;
  }

  const AdminHandlers handlers_;
  const std::string role_;
  const absl::Time start_ = absl::Now();
};

}  // namespace

struct Server::Impl {
  std::unique_ptr<AdminService> admin;
  std::vector<std::string> service_names;
  std::unique_ptr<grpc::Server> server;
  absl::Mutex mutex;
  bool stopped ABSL_GUARDED_BY(mutex) = false;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<Server>> Server::Start(ServerOptions options) {
  static std::once_flag once;
  std::call_once(once, [] {
    gpr_set_log_function(LogForGrpc);
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    // Links the description of the health service in, for reflection.
    grpc::health::v1::HealthCheckRequest::descriptor();
  });
  auto impl = std::make_unique<Impl>();
  grpc::ServerBuilder builder;
  for (const NamedService& service : options.services) {
    builder.RegisterService(service.service);
    impl->service_names.push_back(service.name);
  }
  if (options.admin.has_value()) {
    impl->admin = std::make_unique<AdminService>(*std::move(options.admin), options.role);
    builder.RegisterService(impl->admin.get());
    impl->service_names.emplace_back(v1::Admin::service_full_name());
  }
  // Two servers on one port would take each other's calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  builder.SetMaxReceiveMessageSize(options.message_bytes_max);
  if (options.memory_bytes_max > 0) {
    builder.SetResourceQuota(
        grpc::ResourceQuota(options.role).Resize(static_cast<size_t>(options.memory_bytes_max)));
  }
  int port = 0;
  builder.AddListeningPort(options.address, Credentials(options.tls), &port);
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve gRPC on ", options.address,
                     ": the port is taken, or the address is not one of this machine"));
  }
  std::unique_ptr<Server> server(new Server(std::move(impl)));
  server->port_ = port;
  server->SetLive(true);
  server->SetReady(false);
  return server;
}

void Server::SetReady(bool ready) {
  absl::MutexLock lock(&impl_->mutex);
  if (impl_->stopped) return;
  grpc::HealthCheckServiceInterface* const health = impl_->server->GetHealthCheckService();
  health->SetServingStatus("", ready);
  health->SetServingStatus("readiness", ready);
  for (const std::string& name : impl_->service_names) health->SetServingStatus(name, ready);
}

void Server::SetLive(bool live) {
  absl::MutexLock lock(&impl_->mutex);
  if (impl_->stopped) return;
  impl_->server->GetHealthCheckService()->SetServingStatus("liveness", live);
}

void Server::Shutdown(absl::Duration grace) {
  {
    absl::MutexLock lock(&impl_->mutex);
    if (impl_->stopped) return;
    impl_->stopped = true;
  }
  impl_->server->GetHealthCheckService()->Shutdown();
  impl_->server->Shutdown(std::chrono::system_clock::now() +
                          absl::ToChronoNanoseconds(std::min(grace, absl::Hours(24))));
}

}  // namespace sluice::rpc
