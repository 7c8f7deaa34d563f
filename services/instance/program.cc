#include "services/instance/program.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/backends/make_backend.h"
#include "kernels/base/memory_ledger.h"
#include "kernels/base/status.h"
#include "kernels/ops/attention.h"
#include "services/base/clock.h"
#include "services/base/exit_deadline.h"
#include "services/base/log.h"
#include "services/base/metrics.h"
#include "services/base/program.h"
#include "services/base/progress.h"
#include "services/base/shutdown.h"
#include "services/base/version.h"
#include "services/engine/engine.h"
#include "services/instance/attach_client.h"
#include "services/instance/instance.h"
#include "services/instance/instance_metrics.h"
#include "services/instance/load_reporter.h"
#include "services/instance/model_loading.h"
#include "services/model/page_hash.h"
#include "services/rpc/server.h"
#include "services/transport/socket_transport.h"

namespace sluice::instance {
namespace {

// For what has been said already when a stream is closed.
constexpr absl::Duration kFlush = absl::Seconds(2);
// Or less, on a device where no step reads weights from a disk.
constexpr absl::Duration kStepLimitMin = absl::Minutes(10);
constexpr int64_t kKvBytesDefault = int64_t{1} << 30;

v1::Role ToRole(absl::string_view role) {
  if (role == "prefill") return v1::ROLE_PREFILL;
  return role == "decode" ? v1::ROLE_DECODE : v1::ROLE_MIXED;
}

std::string Bytes(const model::PageHash& hash) {
  return std::string(reinterpret_cast<const char*>(hash.data()), hash.size());
}

// Fills in what the section says of sizes.
absl::Status SizeEngine(const InstanceSection& section, const model::ModelConfig& config,
                        engine::EngineOptions* options) {
  const int64_t page_bytes = KvBytesPerToken(config, options->kv_dtype) * kPageTokens;
  const int64_t memory = static_cast<int64_t>(section.kv_memory.value_or(kKvBytesDefault));
  options->kv_pages =
      section.kv_pages.has_value() ? static_cast<int64_t>(*section.kv_pages) : memory / page_bytes;
  constexpr int64_t kPagesMax = INT32_MAX / kPageTokens;  // rows have 32-bit numbers
  if (options->kv_pages < 1 || options->kv_pages > kPagesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kv_memory is ", HumanBytes(memory), ", allowed is ", HumanBytes(page_bytes), " to ",
        HumanBytes(page_bytes * kPagesMax), ": 1 to ", kPagesMax, " pages of KV of this model"));
  }
  options->slots_max = section.slots;
  options->step_tokens_max = section.step_tokens;
  options->positions_max =
      std::min<int64_t>(config.max_position_embeddings, options->kv_pages * kPageTokens);
  return absl::OkStatus();
}

// `sluice up` puts real ports in place of 0 before its children read the file.
absl::Status CheckDialled(const ClusterConfig& config) {
  const auto check = [](const char* key, const Address& address) {
    if (address.port != 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        key, ": is ", address.ToString(), ", and port 0 is one that only `sluice up` ",
        "chooses; wanted the port at which instances that are started by hand find it"));
  };
  SLUICE_RETURN_IF_ERROR(check("router.attach", config.router.attach));
  return config.balancer.enabled ? check("balancer.grpc", config.balancer.grpc) : absl::OkStatus();
}

void LogProgress(const std::string& label, int64_t percent, int64_t total_bytes) {
  LogInfo(label, {{"percent", percent}, {"of", HumanBytes(total_bytes)}});
}

class App {
 public:
  App(const Program& program, ShutdownSignal* shutdown)
      : program_(program),
        shutdown_(shutdown),
        section_(SectionOf(program.config, program.process.role)),
        metrics_({.model = program.config.model.name,
                  .role = program.process.role,
                  .instance = program.process.name}) {}

  // OnShutdown uses what goes now.
  ~App() { shutdown_->ForgetCallback(); }
  App(const App&) = delete;
  App& operator=(const App&) = delete;

  // Until SIGTERM, or a failure.
  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(WithExitCode(StartServers(), kExitPreflight));
    shutdown_->OnRequested([this] { OnShutdown(); });
    const absl::Time started = clock_.Now();
    SLUICE_RETURN_IF_ERROR(WithExitCode(Load(), kExitModel));
    metrics_.Gauge("sluice_startup_seconds", "From the start to ready", {{"stage", "load"}})
        .Set(absl::ToDoubleSeconds(clock_.Now() - started));
    SLUICE_RETURN_IF_ERROR(WithExitCode(Serve(), kExitPreflight));
    const absl::Status status = WaitUntilDone();
    Stop();
    return status;
  }

 private:
  enum class Phase { kLoading, kServing, kStopping };

  // On the signal's thread.
  void OnShutdown() {
    if (phase_.exchange(Phase::kStopping) == Phase::kLoading) {
      LogInfo("stopped while loading");
      StopLogging();
      std::_Exit(0);  // nothing is promised to anybody yet
    }
    exit_deadline_.Start(program_.config.timeouts.drain + kStopMax);
    server_->SetReady(false);
    instance_->BeginDrain();
  }

  absl::Status StartServers() {
    SLUICE_ASSIGN_OR_RETURN(metrics_server_,
                            MetricsServer::Start(program_.process.metrics->ToString(), metrics_));
    SLUICE_ASSIGN_OR_RETURN(
        server_,
        rpc::Server::Start({.address = program_.process.admin->ToString(),
                            .services = {},
                            .admin = rpc::AdminHandlers{.drain = [this] { shutdown_->Request(); },
                                                        .status = [this] { return GetStatus(); }},
                            .role = program_.process.role}));
    return absl::OkStatus();
  }

  v1::GetStatusResponse GetStatus() const {
    v1::GetStatusResponse response;
    v1::InstanceStatus& status = *response.add_instances();
    if (serving_.load()) {
      status = instance_->status();
      response.set_ready(instance_->ready());
    } else {
      status.set_state("loading");
    }
    response.set_draining(shutdown_->requested());
    status.set_instance(program_.process.name);
    status.set_role(program_.process.role);
    return response;
  }

  absl::Status Load() {
    const ModelSection& model = program_.config.model;
    const ModelSource source{.dir = model.dir,
                             .numerics = model.numerics,
                             .kv_dtype = model.kv_dtype,
                             .device = section_.device,
                             .threads = section_.threads,
                             .load_format = model.load_format,
                             .dummy_seed = model.dummy_seed};
    LogInfo("loading", {{"model", model.dir}});
    auto backend = MakeBackendOf(source);
    if (!backend.ok()) return WithExitCode(backend.status(), kExitPreflight);
    SLUICE_ASSIGN_OR_RETURN(model_, LoadModel(source, *std::move(backend), {.tell = LogProgress}));
    SLUICE_RETURN_IF_ERROR(
        WithExitCode(SizeEngine(section_, model_.config, &model_.engine_options), kExitUsage));
    if (model_.engine_options.kv_dtype == DType::kF8E4M3) {
      LogWarn("KV in FP8: attention is the general kernels', many times slower than over bf16",
              {{"kv_dtype", model.kv_dtype}});
    }
    SLUICE_ASSIGN_OR_RETURN(
        engine_, engine::Engine::Create(model_.config, model_.weights, model_.backend.get(),
                                        model_.engine_options));
    TellMemory();
    SLUICE_ASSIGN_OR_RETURN(const model::PageHash model_hash, model::ModelHash(model.dir));
    hello_.set_protocol_version(v1::PROTOCOL_VERSION_CURRENT);
    hello_.set_instance(program_.process.name);
    hello_.set_incarnation(std::random_device{}() | uint64_t{std::random_device{}()} << 32);
    hello_.set_role(ToRole(program_.process.role));
    hello_.set_model_name(model.name);
    hello_.set_model_hash(Bytes(model_hash));
    hello_.set_kv_layout_hash(
        Bytes(model::KvLayoutHash(model_.config, model_.engine_options.kv_dtype)));
    *hello_.mutable_capacity() = CapacityOf(*engine_);
    hello_.set_software(std::string(SoftwareVersion()));
    return absl::OkStatus();
  }

  void TellMemory() const {
    const DeviceMemory memory = model_.backend->memory();
    if (memory.total == 0) return;
    const MemoryUse use = UseOf(memory);
    LogInfo("memory of the device", {{"weights", MemoryString(use.weights)},
                                     {"kv", MemoryString(use.kv)},
                                     {"activations", MemoryString(use.activations)},
                                     {"free", MemoryString(memory.free)},
                                     {"total", MemoryString(memory.total)}});
  }

  absl::Status Serve() {
    if (hello_.role() != v1::ROLE_MIXED) {
      SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<PageMover> mover, model_.backend->MakePageMover());
      if (mover != nullptr && engine_->kv_cache().handle == nullptr) {
        LogWarn("KV goes through the host: this GPU hands no memory to other processes",
                {{"reason", engine_->kv_cache().why_no_handle}});
      }
      SLUICE_ASSIGN_OR_RETURN(transport_,
                              transport::MakeSocketTransport({.memory = KvMemoryOf(*engine_),
                                                              .mover = std::move(mover),
                                                              .incarnation = hello_.incarnation(),
                                                              .host = section_.kv_host}));
    }
    instance_metrics_ =
        std::make_unique<InstanceMetrics>(program_.process.role, hello_.capacity(), &metrics_);
    if (const DeviceMemory memory = model_.backend->memory(); memory.total > 0) {
      instance_metrics_->SetMemory(UseOf(memory));
    }
    const TimeoutsSection& timeouts = program_.config.timeouts;
    instance_ = std::make_unique<Instance>(
        InstanceOptions{.core = {.role = hello_.role(),
                                 .random_seed = std::random_device{}(),
                                 .kv_timeout = timeouts.kv,
                                 .drain_grace = timeouts.drain},
                        .waiting_requests_max = section_.waiting_requests_max,
                        .heartbeat = timeouts.heartbeat,
                        .step_limit_min = std::min(kStepLimitMin, engine_->step_limit())},
        engine_.get(), transport_.get(), instance_metrics_.get(), &clock_);
    std::vector<std::string> routers;
    for (const Address& address : AttachAddresses(program_.config)) {
      routers.push_back(address.ToString());
    }
    attach_ = std::make_unique<AttachClient>(
        AttachOptions{
            .routers = std::move(routers), .hello = hello_, .random_seed = hello_.incarnation()},
        instance_.get());
    instance_->Start(attach_.get());
    if (program_.config.balancer.enabled) StartReporter();
    serving_ = true;
    server_->SetReady(true);
    Phase loading = Phase::kLoading;
    phase_.compare_exchange_strong(loading, Phase::kServing);
    LogInfo("ready", {{"role", program_.process.role},
                      {"slots", engine_->options().slots_max},
                      {"kv_pages", engine_->options().kv_pages},
                      {"admin", program_.process.admin->ToString()},
                      {"backend", model_.backend->Describe()}});
    return absl::OkStatus();
  }

  void StartReporter() {
    v1::ExpertLoadReport identity;
    identity.set_instance(hello_.instance());
    identity.set_incarnation(hello_.incarnation());
    identity.set_role(hello_.role());
    identity.set_model_hash(hello_.model_hash());
    reporter_ = std::make_unique<LoadReporter>(
        program_.config.balancer.grpc.ToString(), std::move(identity), model_.config,
        LoadSource{.take = [this](std::vector<int64_t>* load) { engine_->TakeExpertLoad(load); },
                   .steps = [this] { return instance_->steps(); }});
  }

  absl::Status WaitUntilDone() {
    absl::Status status;
    do {
      status = instance_->WaitUntilDone(absl::Hours(1));
    } while (absl::IsDeadlineExceeded(status));
    return status;
  }

  void Stop() {
    exit_deadline_.Start(kStopMax);
    server_->SetReady(false);
    reporter_.reset();
    attach_->Close(kFlush);
    instance_->Stop();
    transport_.reset();
    server_->Shutdown(absl::ZeroDuration());
    LogInfo("stopped");
  }

  const Program& program_;
  ShutdownSignal* const shutdown_;
  const InstanceSection& section_;
  ExitDeadline exit_deadline_;  // outlives what may hang
  const RealClock clock_;
  Metrics metrics_;
  std::unique_ptr<MetricsServer> metrics_server_;

  LoadedModel model_;
  std::unique_ptr<engine::Engine> engine_;
  v1::Hello hello_;
  std::unique_ptr<transport::KvTransport> transport_;
  std::unique_ptr<InstanceMetrics> instance_metrics_;
  std::unique_ptr<Instance> instance_;
  std::unique_ptr<AttachClient> attach_;
  std::unique_ptr<LoadReporter> reporter_;

  std::atomic<Phase> phase_{Phase::kLoading};
  std::atomic<bool> serving_{false};     // instance_ stands
  std::unique_ptr<rpc::Server> server_;  // last: its handlers use all above
};

}  // namespace

int RunProgram(int argc, char** argv, std::initializer_list<absl::string_view> roles) {
  LoadKernelsAtStart();
  ShutdownSignal shutdown;
  const absl::StatusOr<Program> program = StartProgram(argc, argv, roles);
  if (!program.ok()) return ExitWith(program.status());
  if (absl::Status status = CheckDialled(program->config); !status.ok()) {
    return ExitWith(WithExitCode(status, kExitUsage));
  }
  absl::Status status;
  {
    App app(*program, &shutdown);
    status = app.Run();
  }
  return ExitWith(status);
}

}  // namespace sluice::instance
