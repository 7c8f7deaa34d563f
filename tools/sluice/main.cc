// sluice: ask a model, measure its answers, look into a checkpoint.

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/status/status.h"
#include "tools/sluice/commands.h"

namespace {

constexpr char kAbout[] =
    "Runs and inspects DeepSeek-V3-class language models.\n"
    "Answers go to stdout; progress, logs and errors to stderr. Exit status 0, or 1 with a reason.";

int ExitWith(const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "sluice: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(kAbout, "sluice");
  app.require_subcommand(1);
  std::vector<std::pair<CLI::App*, sluice::cli::Command>> commands;
  for (auto* add : {&sluice::cli::AddGenerateCommand, &sluice::cli::AddEvalCommand,
                    &sluice::cli::AddInspectCommand}) {
    sluice::cli::Command command = (*add)(&app);
    commands.emplace_back(app.get_subcommands(nullptr).back(), std::move(command));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, std::cout, std::cerr) == 0 ? 0 : 1;
  }
  for (const auto& [subcommand, run] : commands) {
    if (subcommand->parsed()) return ExitWith(run());
  }
  return 0;
}
