#include "services/base/program.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "kernels/base/status.h"
#include "services/base/edit_distance.h"
#include "services/base/open_files.h"
#include "services/base/version.h"

namespace sluice {
namespace {

absl::string_view BaseName(absl::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == absl::string_view::npos ? path : path.substr(slash + 1);
}

void PrintUsage(absl::string_view program, std::initializer_list<absl::string_view> roles) {
  const std::string text = absl::StrCat(
      "usage: ", program, " --config FILE [--instance NAME]\n\n",
      "One process of a Sluice cluster, of role ", absl::StrJoin(roles, " or "),
      ". `sluice up -c FILE` starts all of a file.\n\n", "  --config FILE    the cluster file\n",
      "  --instance NAME  which process of the file this is, such as ", *roles.begin(),
      *roles.begin() == "balancer" ? "" : "-1", "; default: the first one\n",
      "  --version        what this is\n", "  --help           this text\n\n",
      "SIGTERM and Ctrl-C drain; a second one ends at once. Exit status 0 stopped as asked, 1 "
      "failed "
      "while it ran,\n2 usage or cluster file, 3 a port or a device is not there, 4 the model "
      "cannot be loaded; with a reason on stderr.\n");
  std::fputs(text.c_str(), stdout);
}

constexpr char kExitCodeUrl[] = "sluice.exit_code";

absl::StatusOr<Program> ReadProgram(int argc, char** argv,
                                    std::initializer_list<absl::string_view> roles) {
  const absl::string_view name = BaseName(argc > 0 ? argv[0] : "");
  std::string path, instance;
  for (int i = 1; i < argc; ++i) {
    const absl::string_view argument = argv[i];
    if (argument == "--help" || argument == "-h") {
      PrintUsage(name, roles);
      std::exit(0);
    }
    if (argument == "--version") {
      std::printf("%s\n", BuildVersion().c_str());
      std::exit(0);
    }
    if (argument != "--config" && argument != "--instance") {
      const std::string near =
          NearestWord(argument, {"--config", "--instance", "--version", "--help"});
      return absl::InvalidArgumentError(
          absl::StrCat("unknown argument '", argument, "'",
                       near.empty() ? "" : absl::StrCat("; did you mean '", near, "'?"), "; see ",
                       name, " --help"));
    }
    if (i + 1 == argc) {
      return absl::InvalidArgumentError(
          absl::StrCat(argument, " needs a value; see ", name, " --help"));
    }
    (argument == "--config" ? path : instance) = argv[++i];
  }
  if (path.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--config FILE is needed; see ", name, " --help"));
  }
  Program program;
  SLUICE_ASSIGN_OR_RETURN(program.config, LoadClusterConfig(path));
  const auto has_role = [&](const ProcessConfig& process) {
    return std::find(roles.begin(), roles.end(), process.role) != roles.end();
  };
  if (instance.empty()) {
    const std::vector<ProcessConfig> all = Processes(program.config);
    const auto first = std::find_if(all.begin(), all.end(), has_role);
    if (first == all.end()) {
      return absl::NotFoundError(
          absl::StrCat(path, " has no process of role ", absl::StrJoin(roles, " or ")));
    }
    program.process = *first;
  } else {
    SLUICE_ASSIGN_OR_RETURN(program.process, FindProcess(program.config, instance));
    if (!has_role(program.process)) {
      return absl::InvalidArgumentError(absl::StrCat("'", instance, "' has the role ",
                                                     program.process.role, "; ", name, " runs ",
                                                     absl::StrJoin(roles, " or ")));
    }
  }
  SLUICE_RETURN_IF_ERROR(StartLogging({.format = program.config.logging.format,
                                       .level = program.config.logging.level,
                                       .process = std::string(name),
                                       .instance = program.process.name}));
  RaiseOpenFilesLimit();
  // Debian's Abseil looks for deadlocks at every lock, under one lock for all; gRPC has many.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return program;
}

}  // namespace

absl::StatusOr<Program> StartProgram(int argc, char** argv,
                                     std::initializer_list<absl::string_view> roles) {
  absl::StatusOr<Program> program = ReadProgram(argc, argv, roles);
  if (!program.ok()) return WithExitCode(program.status(), kExitUsage);
  return program;
}

absl::Status WithExitCode(absl::Status status, ExitCode code) {
  if (!status.ok() && !status.GetPayload(kExitCodeUrl).has_value()) {
    status.SetPayload(kExitCodeUrl, absl::Cord(absl::StrCat(code)));
  }
  return status;
}

int ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return kExitDone;
  const auto payload = status.GetPayload(kExitCodeUrl);
  int code = kExitRuntime;
  if (payload.has_value() && !absl::SimpleAtoi(std::string(*payload), &code)) return kExitRuntime;
  return code;
}

int ExitWith(const absl::Status& status) {
  if (!status.ok()) LogError("ends", {{"reason", status.message()}});
  StopLogging();
  return ExitCodeOf(status);
}

}  // namespace sluice
