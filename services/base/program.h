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

// How the programs of a cluster end, for whoever starts them again. docs/operations.md has the
// table.
enum ExitCode {
  kExitDone = 0,       // stopped as asked
  kExitRuntime = 1,    // failed while it ran
  kExitUsage = 2,      // its arguments, or the cluster file
  kExitPreflight = 3,  // what it needs of the machine is not there: ports, KV transport, device
  kExitModel = 4,      // the model cannot be loaded, or has no room
};

// The same status, which ExitWith ends with `code` for. OK stays OK, and a code that is there
// already stays.
absl::Status WithExitCode(absl::Status status, ExitCode code);

// Reads `--config FILE --instance NAME`, the file, and starts the log as the file wants it. NAME
// must have one of `roles`; without it the first process of the first role is taken. Raises the
// limit on open files to what the system allows. `--help` prints the usage and exits 0. Errors
// end with kExitUsage.
absl::StatusOr<Program> StartProgram(int argc, char** argv,
                                     std::initializer_list<absl::string_view> roles);

// 0, that of WithExitCode, or 1.
int ExitCodeOf(const absl::Status& status);

// Logs a failure, ends the log, and gives ExitCodeOf.
int ExitWith(const absl::Status& status);

}  // namespace sluice
