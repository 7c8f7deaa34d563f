// How the programs of a cluster begin and end:
//
//   int main(int argc, char** argv) {
//     sluice::ShutdownSignal shutdown;
//     auto program = sluice::StartProgram(argc, argv, {"prefill"});
//     if (!program.ok()) return sluice::ExitWith(program.status());
//     return sluice::ExitWith(Run(*program, shutdown));
//   }
#pragma once

#include <initializer_list>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/base/cluster_config.h"

namespace sluice {

struct Program {
  ClusterConfig config;
  ProcessConfig process;  // the one of `config` that this process is
};

// Reads `--config FILE --instance NAME`, the file, and starts the log as the file wants it. NAME
// must have one of `roles`; without it the first process of the first role is taken. Raises the
// limit on open files to what the system allows. `--help` prints the usage and exits 0.
absl::StatusOr<Program> StartProgram(int argc, char** argv,
                                     std::initializer_list<absl::string_view> roles);

// Logs a failure, ends the log, and gives the exit status: 0, or 1.
int ExitWith(const absl::Status& status);

}  // namespace sluice
