// sluice inspect: what a checkpoint holds, and whether it can be served.

#include <cstdio>
#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/model/inspect.h"
#include "tools/sluice/commands.h"

namespace sluice::cli {

Command AddInspectCommand(CLI::App* parent) {
  auto dir = std::make_shared<std::string>();
  auto options = std::make_shared<model::InspectOptions>();
  options->show_progress = true;
  CLI::App* command = parent->add_subcommand(
      "inspect", "what a checkpoint directory holds, and whether it can be served");
  command->add_option("dir", *dir, "checkpoint directory")->required()->option_text("DIR");
  command->add_flag("--check-data", options->check_data,
                    "read every weight too, and report values that are not finite");
  return [dir, options] {
    const model::Inspection inspection = model::InspectCheckpoint(*dir, *options);
    std::fputs(inspection.text.c_str(), stdout);
    return inspection.servable
               ? absl::OkStatus()
               : absl::FailedPreconditionError(absl::StrCat(*dir, " cannot be served"));
  };
}

}  // namespace sluice::cli
