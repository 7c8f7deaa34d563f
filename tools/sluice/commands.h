// The commands of `sluice`. Each adds its options to a subcommand and returns what runs it.
#pragma once

#include <functional>

#include "CLI/App.hpp"
#include "absl/status/status.h"

namespace sluice::cli {

using Command = std::function<absl::Status()>;

Command AddUpCommand(CLI::App* parent);
Command AddChatCommand(CLI::App* parent);
Command AddTopCommand(CLI::App* parent);
Command AddGenerateCommand(CLI::App* parent);
Command AddEvalCommand(CLI::App* parent);
Command AddInspectCommand(CLI::App* parent);

}  // namespace sluice::cli
