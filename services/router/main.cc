// sluice-router: the public APIs, and the decisions which instance does what.

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/clock.h"
#include "services/base/exit_deadline.h"
#include "services/base/log.h"
#include "services/base/program.h"
#include "services/base/shutdown.h"
#include "services/router/router_app.h"

namespace sluice::router {
namespace {

absl::Status Run(const Program& program, ShutdownSignal* shutdown, ExitDeadline* exit_deadline) {
  const RealClock clock;
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<RouterApp> app,
                          RouterApp::Start(program.config, program.process, &clock,
                                           [shutdown] { shutdown->Request(); }));
  const RouterPorts ports = app->ports();
  LogInfo("ready for instances",
          {{"model", program.config.model.name},
           {"http", absl::StrCat(program.config.router.tls.enabled() ? "https://" : "http://",
                                 program.process.http->host, ":", ports.http)},
           {"grpc", ports.grpc},
           {"attach", ports.attach},
           {"admin", ports.admin}});
  shutdown->Wait();
  exit_deadline->Start(program.config.timeouts.drain + kStopMax);
  LogInfo("draining");
  app->Drain(program.config.timeouts.drain);
  return absl::OkStatus();
}

}  // namespace
}  // namespace sluice::router

int main(int argc, char** argv) {
  sluice::ShutdownSignal shutdown;
  sluice::ExitDeadline exit_deadline;
  const auto program = sluice::StartProgram(argc, argv, {"router"});
  if (!program.ok()) return sluice::ExitWith(program.status());
  return sluice::ExitWith(sluice::router::Run(*program, &shutdown, &exit_deadline));
}
