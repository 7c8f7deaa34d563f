// What is wrong with a command line, for the person who typed it.
#pragma once

#include <string>
#include <vector>

#include "CLI/App.hpp"

namespace sluice::cli {

// One line: the command or the option that there is none of, with the nearest one there is, or what
// `error` says. `arguments` are those that `app` could not parse, in the order they were given.
std::string UsageError(CLI::App* app, const std::vector<std::string>& arguments,
                       const CLI::ParseError& error);

}  // namespace sluice::cli
