#include "services/router/router_app.h"

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "kernels/base/status.h"
#include "services/base/log.h"
#include "services/base/metrics.h"
#include "services/base/program.h"
#include "services/base/version.h"
#include "services/router/api_call.h"
#include "services/router/api_keys.h"
#include "services/router/attach_service.h"
#include "services/router/grpc_api.h"
#include "services/router/http_api.h"
#include "services/router/http_server.h"
#include "services/router/preparation_pool.h"
#include "services/router/router_core.h"
#include "services/router/router_metrics.h"
#include "services/router/served_model.h"
#include "services/router/tls_certificate.h"
#include "services/rpc/server.h"
#include "sluice/v1/control.pb.h"

namespace sluice::router {
namespace {

constexpr std::chrono::milliseconds kTick{50};
constexpr int kTicksPerUpdate = 5;    // of metrics and status
constexpr int kTicksPerRefresh = 20;  // of the TLS files
// What is left of answers, over either API, after the last request.
constexpr absl::Duration kFlushTimeout = absl::Seconds(2);

// The core as the edge wants it.
class CoreBackend final : public TokenBackend {
 public:
  CoreBackend(RouterCore* core, const Clock* clock) : core_(*core), clock_(*clock) {}

  absl::StatusOr<RequestId> Submit(GenerationRequest request, GenerationSink* sink) override {
    return core_.Submit(std::move(request), sink, clock_.Now());
  }
  void Cancel(RequestId id) override { core_.Cancel(id, clock_.Now()); }
  bool CanPlace() const override { return core_.CanPlace(); }
  std::string KvLayoutHash() const override { return core_.KvLayoutHash(); }
  absl::Time Now() const override { return clock_.Now(); }

 private:
  RouterCore& core_;
  const Clock& clock_;
};

RouterOptions CoreOptions(const ClusterConfig& config, const ProcessConfig& process,
                          const ServedModel& model) {
  absl::BitGen random;
  RouterOptions options;
  options.router = process.name;
  options.incarnation = absl::Uniform<uint64_t>(random);
  options.model_hash.assign(model.hash.begin(), model.hash.end());
  options.active_requests_max = config.router.active_requests_max;
  options.queued_requests_max = config.router.queued_requests_max;
  for (const ClassSection& section : config.router.classes) {
    options.class_targets.push_back({.ttft = section.ttft, .tpot = section.tpot});
  }
  options.queue_wait_max = config.router.queue_timeout > absl::ZeroDuration()
                               ? config.router.queue_timeout
                               : absl::InfiniteDuration();
  return options;
}

// Of all requests that are being received over HTTP, and as much over gRPC.
uint64_t ReceivingBytesMax(const RouterSection& router) {
  return std::max(uint64_t{256} << 20, router.body_bytes_max);
}

ServedModelOptions ModelOptions(const ClusterConfig& config) {
  return {.dir = config.model.dir,
          .name = config.model.name,
          .chat_template = config.model.chat_template,
          .prompt_tokens_max = config.router.prompt_tokens_max,
          .truncate_prompts = config.router.truncate_prompt == "left"};
}

}  // namespace

class RouterApp::Impl {
 public:
  Impl(const ClusterConfig& config, const ProcessConfig& process, const Clock* clock,
       std::unique_ptr<const ServedModel> model, ApiKeys keys)
      : config_(config),
        process_(process),
        clock_(*clock),
        model_(std::move(model)),
        keys_(std::move(keys)),
        metrics_({.model = config.model.name, .role = "router", .instance = process.name}),
        router_metrics_(&metrics_, clock),
        attach_(post_, clock),
        core_(CoreOptions(config, process, *model_), &attach_, &router_metrics_),
        backend_(&core_, clock),
        pool_(PreparationPoolOptions{.threads = config.router.io_threads}),
        edge_{.model = model_.get(),
              .backend = &backend_,
              .pool = &*pool_,
              .metrics = &router_metrics_,
              .post = post_,
              .request_timeout = config.router.request_timeout > absl::ZeroDuration()
                                     ? config.router.request_timeout
                                     : absl::InfiniteDuration(),
              .answers_max =
                  int64_t{config.router.active_requests_max} + config.router.queued_requests_max},
        http_api_({.keys = keys_,
                   .version = std::string(SoftwareVersion()),
                   .created = absl::ToUnixSeconds(absl::Now())},
                  &edge_, &metrics_),
        grpc_api_(&edge_, &keys_),
        timer_(loop_) {
    attach_.SetCore(&core_);
  }

  ~Impl() {
    Stop();
    pool_.reset();  // it posts to the loop
  }

  absl::Status Start(std::function<void()> drain) {
    const RouterSection& router = config_.router;
    if (router.tls.enabled()) {
      SLUICE_ASSIGN_OR_RETURN(tls_, TlsCertificate::Load(router.tls));
    }
    SLUICE_ASSIGN_OR_RETURN(http_,
                            HttpServer::Start(&loop_,
                                              {.host = process_.http->host,
                                               .port = process_.http->port,
                                               .limits = {.body_bytes_max = router.body_bytes_max},
                                               .tls = tls_.get(),
                                               .connections_max = router.connections_max,
                                               .receiving_bytes_max = ReceivingBytesMax(router)},
                                              &http_api_));
    SLUICE_ASSIGN_OR_RETURN(
        attach_server_, rpc::Server::Start({.address = process_.attach->ToString(),
                                            .services = {{"sluice.v1.Attach", attach_.service()}},
                                            .role = "router"}));
    SLUICE_ASSIGN_OR_RETURN(
        grpc_server_,
        rpc::Server::Start({.address = process_.grpc->ToString(),
                            .services = grpc_api_.services(),
                            .role = "router",
                            .message_bytes_max = static_cast<int>(router.body_bytes_max),
                            .memory_bytes_max = ReceivingBytesMax(router),
                            .tls = router.tls}));
    SLUICE_ASSIGN_OR_RETURN(
        admin_server_,
        rpc::Server::Start({.address = process_.admin->ToString(),
                            .services = {},
                            .admin = rpc::AdminHandlers{.drain = std::move(drain),
                                                        .status = [this] { return status(); }},
                            .role = "router"}));
    attach_server_->SetReady(true);
    thread_ = std::thread([this] { loop_.run(); });
    post_([this] { Tick(); });
    return absl::OkStatus();
  }

  RouterPorts ports() const {
    return {.http = http_->port(),
            .grpc = grpc_server_->port(),
            .attach = attach_server_->port(),
            .admin = admin_server_->port()};
  }

  void Drain(absl::Duration timeout) {
    const absl::Time deadline = clock_.Now() + timeout;
    RunOnLoop([this] {
      draining_ = true;
      core_.BeginDrain();
      SetReady(false);
    });
    WaitOnLoop(deadline, [this] { return core_.idle(); });
    RunOnLoop([this] {
      http_->BeginDrain();
      core_.EndAll(clock_.Now());
    });
    WaitOnLoop(clock_.Now() + kFlushTimeout,
               [this] { return http_->num_connections() == 0 && edge_.calls_running == 0; });
    Stop();
  }

 private:
  v1::GetStatusResponse status() const {
    absl::MutexLock lock(&status_mutex_);
    return status_;
  }

  void SetReady(bool ready) {
    if (ready == ready_) return;
    ready_ = ready;
    grpc_server_->SetReady(ready);
    admin_server_->SetReady(ready);
  }

  void Tick() {
    core_.OnTick(clock_.Now());
    if (++ticks_ % kTicksPerUpdate == 0) {
      const RouterSnapshot snapshot = core_.Snapshot();
      router_metrics_.Update(snapshot);
      router_metrics_.connections().Set(http_->num_connections());
      v1::GetStatusResponse status = router_metrics_.Status(snapshot);
      absl::MutexLock lock(&status_mutex_);
      status_ = std::move(status);
    }
    if (tls_ != nullptr && ticks_ % kTicksPerRefresh == 0) tls_->Refresh();
    SetReady(!draining_ && core_.CanPlace());
    timer_.expires_after(kTick);
    timer_.async_wait([this](boost::system::error_code error) {
      if (!error) Tick();
    });
  }

  // Runs it on the loop and waits for that.
  template <typename F>
  void RunOnLoop(F run) {
    absl::Notification done;
    post_([&] {
      run();
      done.Notify();
    });
    done.WaitForNotification();
  }

  template <typename F>
  void WaitOnLoop(absl::Time deadline, F holds) {
    bool held = false;
    while (!held && clock_.Now() < deadline) {
      RunOnLoop([&] { held = holds(); });
      if (!held) absl::SleepFor(absl::Milliseconds(20));
    }
  }

  void Stop() {
    if (!thread_.joinable()) return;
    // Calls that are still there end as cancelled, for which the loop must run.
    grpc_server_->Shutdown(absl::ZeroDuration());
    RunOnLoop([this] {
      timer_.cancel();
      http_.reset();
      attach_.Close();
    });
    attach_server_->Shutdown(absl::ZeroDuration());
    admin_server_->Shutdown(absl::ZeroDuration());
    // What was posted until now, and what that posts.
    RunOnLoop([] {});
    RunOnLoop([] {});
    loop_.stop();
    thread_.join();
  }

  const ClusterConfig config_;
  const ProcessConfig process_;
  const Clock& clock_;
  const std::unique_ptr<const ServedModel> model_;
  const ApiKeys keys_;

  Metrics metrics_;
  RouterMetrics router_metrics_;
  const Post post_ = [this](std::function<void()> run) {
    boost::asio::post(loop_, std::move(run));
  };
  AttachService attach_;
  RouterCore core_;
  CoreBackend backend_;
  std::optional<PreparationPool> pool_;
  Edge edge_;
  HttpApi http_api_;
  GrpcApi grpc_api_;
  // After all that posted functions refer to: those that never ran are destroyed with it.
  boost::asio::io_context loop_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{
      loop_.get_executor()};
  boost::asio::steady_timer timer_;
  std::unique_ptr<TlsCertificate> tls_;  // null: plain HTTP
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<rpc::Server> attach_server_, grpc_server_, admin_server_;
  std::thread thread_;

  // On the loop.
  int64_t ticks_ = 0;
  bool ready_ = false;
  bool draining_ = false;

  mutable absl::Mutex status_mutex_;
  v1::GetStatusResponse status_ ABSL_GUARDED_BY(status_mutex_);
};

RouterApp::RouterApp(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RouterApp::~RouterApp() = default;
RouterPorts RouterApp::ports() const { return impl_->ports(); }
void RouterApp::Drain(absl::Duration timeout) { impl_->Drain(timeout); }

absl::StatusOr<std::unique_ptr<RouterApp>> RouterApp::Start(const ClusterConfig& config,
                                                            const ProcessConfig& process,
                                                            const Clock* clock,
                                                            std::function<void()> drain) {
  absl::StatusOr<ApiKeys> keys = ApiKeys::Create(config.router.api_keys);
  if (!keys.ok()) return WithExitCode(keys.status(), kExitUsage);
  auto model = LoadServedModel(ModelOptions(config));
  if (!model.ok()) return WithExitCode(model.status(), kExitModel);
  if (!(*model)->chat_template.has_value()) {
    LogWarn("chats are refused; chat_template in the cluster file's model section names a template",
            {{"model", config.model.dir}, {"reason", (*model)->why_no_chats}});
  }
  auto impl = std::make_unique<Impl>(config, process, clock, *std::move(model), *std::move(keys));
  SLUICE_RETURN_IF_ERROR(WithExitCode(impl->Start(std::move(drain)), kExitPreflight));
  return absl::WrapUnique(new RouterApp(std::move(impl)));
}

}  // namespace sluice::router
