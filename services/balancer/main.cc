// sluice-balancer: gathers how much each expert has to do, and tells who asks.

#include "kernels/base/status.h"
#include "services/balancer/balancer_service.h"
#include "services/base/clock.h"
#include "services/base/exit_deadline.h"
#include "services/base/log.h"
#include "services/base/metrics.h"
#include "services/base/program.h"
#include "services/base/shutdown.h"
#include "services/rpc/server.h"

namespace sluice::balancer {
namespace {

absl::Status Run(const Program& program, ShutdownSignal* shutdown, ExitDeadline* exit_deadline) {
  const RealClock clock;
  Metrics metrics({.model = program.config.model.name,
                   .role = program.process.role,
                   .instance = program.process.name});
  BalancerService service({.window = program.config.balancer.window}, &clock, &metrics);
  SLUICE_ASSIGN_OR_RETURN(const auto metrics_server,
                          MetricsServer::Start(program.process.metrics->ToString(), metrics));
  SLUICE_ASSIGN_OR_RETURN(
      const auto server,
      rpc::Server::Start({.address = program.process.grpc->ToString(),
                          .services = {service.service()},
                          .admin = rpc::AdminHandlers{.drain = [&] { shutdown->Request(); },
                                                      .status =
                                                          [&] {
                                                            v1::GetStatusResponse status =
                                                                service.Status();
                                                            const bool ends = shutdown->requested();
                                                            status.set_ready(!ends);
                                                            status.set_draining(ends);
                                                            return status;
                                                          }},
                          .role = program.process.role}));
  server->SetReady(true);
  LogInfo("ready", {{"grpc", program.process.grpc->ToString()},
                    {"metrics", program.process.metrics->ToString()}});
  while (!shutdown->WaitFor(absl::Seconds(1))) service.UpdateMetrics();
  exit_deadline->Start(kStopMax);
  LogInfo("draining");
  server->SetReady(false);
  server->Shutdown(absl::ZeroDuration());  // workers attach again to the next one
  return absl::OkStatus();
}

}  // namespace
}  // namespace sluice::balancer

int main(int argc, char** argv) {
  sluice::ShutdownSignal shutdown;
  sluice::ExitDeadline exit_deadline;
  const auto program = sluice::StartProgram(argc, argv, {"balancer"});
  if (!program.ok()) return sluice::ExitWith(program.status());
  return sluice::ExitWith(WithExitCode(sluice::balancer::Run(*program, &shutdown, &exit_deadline),
                                       sluice::kExitPreflight));
}
