// sluice: run a cluster and talk to it; ask a model, measure its answers, look into a checkpoint.

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/status/status.h"
#include "services/base/program.h"
#include "services/base/version.h"
#include "tools/sluice/commands.h"
#include "tools/sluice/usage.h"

namespace {

constexpr char kAbout[] =
    "Serves, asks and inspects DeepSeek-V3-class language models.\n"
    "Answers go to stdout; progress, logs and errors to stderr. Exit status 0, or with a reason 1\n"
    "(it failed) or 2 (the command line).";

constexpr int kStderrWaitMs = 1000;

// Runs the command to its exit status. Output that did not reach stdout is a failure too.
int Run(const sluice::cli::Command& command) {
  absl::Status status;
  try {
    status = command();
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError("out of memory");
  }
  if (status.ok() && (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)) {
    status = absl::DataLossError(std::string("cannot write to stdout: ") + std::strerror(errno));
  }
  // Where nobody reads stderr, the exit status alone says it.
  pollfd room{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  if (!status.ok() && poll(&room, 1, kStderrWaitMs) != 0) {
    std::fprintf(stderr, "sluice: %s\n", std::string(status.message()).c_str());
  }
  return sluice::ExitCodeOf(status);
}

// CLI11 2.1 takes the next argument for the value of "--flag=": so "--flag=value" becomes two
// arguments. What follows "--" is not ours.
std::vector<std::string> Arguments(int argc, char** argv) {
  std::vector<std::string> arguments;
  bool ours = true;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    ours = ours && argument != "--";
    const size_t equals = argument.find('=');
    if (ours && argument.rfind("--", 0) == 0 && equals != std::string::npos) {
      arguments.push_back(argument.substr(0, equals));
      arguments.push_back(argument.substr(equals + 1));
    } else {
      arguments.push_back(argument);
    }
  }
  return arguments;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(kAbout, "sluice");
  app.require_subcommand(1);
  app.set_version_flag("--version", sluice::BuildVersion());
  std::vector<std::pair<CLI::App*, sluice::cli::Command>> commands;
  for (auto* add : {&sluice::cli::AddUpCommand, &sluice::cli::AddChatCommand,
                    &sluice::cli::AddTopCommand, &sluice::cli::AddGenerateCommand,
                    &sluice::cli::AddEvalCommand, &sluice::cli::AddInspectCommand}) {
    sluice::cli::Command command = (*add)(&app);
    commands.emplace_back(app.get_subcommands(nullptr).back(), std::move(command));
  }
  const std::vector<std::string> arguments = Arguments(argc, argv);
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));  // as it wants them
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error, std::cout, std::cerr);  // --help
    std::fprintf(stderr, "sluice: %s\n", sluice::cli::UsageError(&app, arguments, error).c_str());
    return sluice::kExitUsage;
  }
  for (const auto& [subcommand, run] : commands) {
    if (subcommand->parsed()) return Run(run);
  }
  return 0;
}
