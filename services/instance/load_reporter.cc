#include "services/instance/load_reporter.h"

#include <chrono>
#include <memory>
#include <utility>

#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "services/base/log.h"
#include "services/rpc/channel.h"
#include "services/rpc/status.h"
#include "sluice/v1/balancer.grpc.pb.h"

namespace sluice::instance {

void AddLayers(const model::ModelConfig& config, const std::vector<int64_t>& load,
               v1::ExpertLoadReport* report) {
  const int64_t experts = config.n_routed_experts;
  if (experts == 0) return;
  const int64_t layers = static_cast<int64_t>(load.size()) / experts;
  for (int64_t layer = config.first_k_dense_replace; layer < layers; ++layer) {
    v1::LayerLoad* out = report->add_layers();
    out->set_layer(static_cast<uint32_t>(layer));
    const auto first = load.begin() + layer * experts;
    out->mutable_tokens()->Add(first, first + experts);
  }
}

LoadReporter::LoadReporter(std::string address, v1::ExpertLoadReport identity,
                           const model::ModelConfig& config, LoadSource source)
    : address_(std::move(address)),
      identity_(std::move(identity)),
      config_(config),
      source_(std::move(source)),
      thread_([this] { Run(); }) {}

LoadReporter::~LoadReporter() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (call_ != nullptr) call_->TryCancel();
  }
  changed_.notify_all();
  thread_.join();
}

void LoadReporter::Run() {
  while (WaitASecond()) ReportUntilBroken();
}

void LoadReporter::ReportUntilBroken() {
  grpc::ClientContext context;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    call_ = &context;
  }
  const auto stub = v1::Balancer::NewStub(rpc::MakeChannel(address_));
  const auto stream = stub->Attach(&context);
  bool told = false;
  std::vector<int64_t> load;
  do {
    v1::ExpertLoadReport report = identity_;
    source_.take(&load);
    AddLayers(config_, load, &report);
    const uint64_t steps = source_.steps();
    report.set_steps(steps - reported_steps_);
    if (!stream->Write(report)) break;
    reported_steps_ = steps;
    if (!told) LogInfo("reporting expert load", {{"balancer", address_}});
    told = true;
  } while (WaitASecond());
  context.TryCancel();
  const grpc::Status status = stream->Finish();
  const std::lock_guard lock(mutex_);
  call_ = nullptr;
  if (told && !stopping_) {
    LogWarn("balancer lost", {{"balancer", address_}, {"why", rpc::FromGrpc(status)}});
  }
}

bool LoadReporter::WaitASecond() {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, std::chrono::seconds(1), [&] { return stopping_; });
}

}  // namespace sluice::instance
