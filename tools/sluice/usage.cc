#include "tools/sluice/usage.h"

#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/base/edit_distance.h"

namespace sluice::cli {
namespace {

std::string DidYouMean(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = NearestWord(word, known);
  return near.empty() ? "" : absl::StrCat("; did you mean '", near, "'?");
}

// The first that `command` has no option for; empty: none.
std::string UnknownOption(const CLI::App& command, const std::vector<std::string>& arguments) {
  for (size_t i = 1; i < arguments.size() && arguments[i] != "--"; ++i) {
    const std::string& argument = arguments[i];
    if (argument.size() > 1 && argument[0] == '-' &&
        command.get_option_no_throw(argument) == nullptr) {
      return argument;
    }
  }
  return "";
}

}  // namespace

std::string UsageError(CLI::App* app, const std::vector<std::string>& arguments,
                       const CLI::ParseError& error) {
  const std::string see = "; see sluice --help";
  if (arguments.empty()) return absl::StrCat("a command is needed", see);
  const std::string& name = arguments[0];
  std::vector<std::string> known;
  const CLI::App* command = nullptr;
  for (const CLI::App* one : app->get_subcommands(nullptr)) {
    known.push_back(one->get_name());
    if (one->get_name() == name) command = one;
  }
  if (command == nullptr) {
    const bool is_option = name[0] == '-';
    if (is_option) known = {"--help", "--version"};
    const std::string near = DidYouMean(name, known);
    return absl::StrCat(
        is_option ? "no option '" : "no command '", name, "'",
        near.empty() ? absl::StrCat("; there are ", absl::StrJoin(known, ", ")) : near, see);
  }
  std::string what = error.what();
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    if (const std::string option = UnknownOption(*command, arguments); !option.empty()) {
      known.clear();
      for (const CLI::Option* one : command->get_options()) {
        for (const std::string& long_name : one->get_lnames())
          known.push_back(absl::StrCat("--", long_name));
      }
      what = absl::StrCat("no option '", option, "'", DidYouMean(option, known));
    }
  }
  return absl::StrCat(name, ": ", what.substr(0, what.find('\n')), "; see sluice ", name,
                      " --help");
}

}  // namespace sluice::cli
