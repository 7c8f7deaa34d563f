#include "services/balancer/balancer_service.h"

#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/synchronization/mutex.h"
#include "services/base/log.h"
#include "services/rpc/status.h"
#include "sluice/v1/balancer.grpc.pb.h"

namespace sluice::balancer {
namespace {

constexpr v1::Role kRoles[] = {v1::ROLE_PREFILL, v1::ROLE_DECODE, v1::ROLE_MIXED};

std::string RoleName(v1::Role role) {
  return absl::AsciiStrToLower(v1::Role_Name(role).substr(std::string("ROLE_").size()));
}

struct RoleGauges {
  v1::Role role;
  prometheus::Gauge& attached;
  prometheus::Gauge& tokens;
  prometheus::Gauge& balancedness_min;
  prometheus::Gauge& balancedness_avg;
};

}  // namespace

struct BalancerService::Impl final : v1::Balancer::CallbackService {
  class Stream;

  Impl(ExpertLoadOptions options, const Clock* clock, Metrics* metrics)
      : load(options),
        clock(*clock),
        reports(metrics->Counter("sluice_balancer_reports_total", "Load reports taken")),
        refused(metrics->Counter("sluice_balancer_refused_reports_total", "Load reports refused")),
        stale(metrics->Gauge("sluice_balancer_stale_load_seconds",
                             "Since the instance silent for longest reported")) {
    for (const v1::Role role : kRoles) {
      const std::string phase = RoleName(role);
      const auto balancedness = [&](const char* stat) -> prometheus::Gauge& {
        return metrics->Gauge("sluice_moe_balancedness",
                              "Mean by maximum of the experts' tokens, over the layers; 1 is even, "
                              "0: no tokens in the window",
                              {{"phase", phase}, {"stat", stat}});
      };
      gauges.push_back({.role = role,
                        .attached = metrics->Gauge("sluice_balancer_attached_instances",
                                                   "Instances that report", {{"phase", phase}}),
                        .tokens = metrics->Gauge("sluice_balancer_window_tokens",
                                                 "Tokens times chosen experts in the window",
                                                 {{"phase", phase}}),
                        .balancedness_min = balancedness("min"),
                        .balancedness_avg = balancedness("avg")});
    }
  }

  grpc::ServerBidiReactor<v1::ExpertLoadReport, v1::PlacementProposal>* Attach(
      grpc::CallbackServerContext* context) override;

  grpc::ServerUnaryReactor* GetExpertLoad(grpc::CallbackServerContext* context,
                                          const v1::GetExpertLoadRequest* request,
                                          v1::GetExpertLoadResponse* response) override {
    {
      absl::MutexLock lock(&mutex);
      *response = load.Sums(request->role());
    }
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  mutable absl::Mutex mutex;
  ExpertLoad load ABSL_GUARDED_BY(mutex);
  const Clock& clock;
  prometheus::Counter& reports;
  prometheus::Counter& refused;
  prometheus::Gauge& stale;
  std::vector<RoleGauges> gauges;
};

// A worker's stream: reads until the worker goes or says something wrong. Deletes itself.
class BalancerService::Impl::Stream final
    : public grpc::ServerBidiReactor<v1::ExpertLoadReport, v1::PlacementProposal> {
 public:
  Stream(Impl* impl, std::string peer) : impl_(*impl), peer_(std::move(peer)) {
    StartRead(&report_);
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    absl::Status status = absl::OkStatus();
    if (!instance_.empty() &&
        (report_.instance() != instance_ || report_.incarnation() != incarnation_)) {
      status = absl::InvalidArgumentError("one stream may report of one instance alone");
    } else {
      absl::MutexLock lock(&impl_.mutex);
      status = impl_.load.Report(report_, impl_.clock.Now());
    }
    if (!status.ok()) {
      impl_.refused.Increment();
      LogWarn("load report refused", {{"peer", peer_}, {"reason", status.message()}});
      return Finish(rpc::ToGrpc(status));
    }
    impl_.reports.Increment();
    if (instance_.empty()) {
      instance_ = report_.instance();
      incarnation_ = report_.incarnation();
      LogInfo("instance reports its expert load", {{"worker", instance_}, {"peer", peer_}});
    }
    StartRead(&report_);
  }

  void OnDone() override {
    if (!instance_.empty()) {
      LogInfo("instance gone", {{"worker", instance_}});
      absl::MutexLock lock(&impl_.mutex);
      impl_.load.Remove(instance_, incarnation_);
    }
    delete this;
  }

  Impl& impl_;
  const std::string peer_;
  std::string instance_;
  uint64_t incarnation_ = 0;
  v1::ExpertLoadReport report_;
};

grpc::ServerBidiReactor<v1::ExpertLoadReport, v1::PlacementProposal>* BalancerService::Impl::Attach(
    grpc::CallbackServerContext* context) {
  return new Stream(this, context->peer());
}

BalancerService::BalancerService(ExpertLoadOptions options, const Clock* clock, Metrics* metrics)
    : impl_(std::make_unique<Impl>(options, clock, metrics)) {}

BalancerService::~BalancerService() = default;

rpc::NamedService BalancerService::service() {
  return {.name = std::string(v1::Balancer::service_full_name()), .service = impl_.get()};
}

v1::GetStatusResponse BalancerService::Status() const {
  v1::GetStatusResponse status;
  absl::MutexLock lock(&impl_->mutex);
  const v1::GetExpertLoadResponse sums = impl_->load.Sums(v1::ROLE_UNSPECIFIED);
  for (const v1::ExpertLoadReport& report : sums.instances()) {
    v1::InstanceStatus& instance = *status.add_instances();
    instance.set_instance(report.instance());
    instance.set_role(RoleName(report.role()));
    instance.set_state("ready");
  }
  return status;
}

void BalancerService::UpdateMetrics() {
  absl::MutexLock lock(&impl_->mutex);
  const absl::Time now = impl_->clock.Now();
  impl_->stale.Set(absl::ToDoubleSeconds(impl_->load.StalestReport(now)));
  for (const RoleGauges& gauges : impl_->gauges) {
    const Balance balance = impl_->load.BalanceOf(gauges.role, now).value_or(Balance());
    gauges.attached.Set(static_cast<double>(impl_->load.num_instances(gauges.role)));
    gauges.tokens.Set(static_cast<double>(balance.tokens));
    gauges.balancedness_min.Set(balance.min);
    gauges.balancedness_avg.Set(balance.average);
  }
}

}  // namespace sluice::balancer
