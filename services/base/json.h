// JSON as absl::StatusOr instead of exceptions.
#pragma once

#include <cstddef>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice {

// Every error is InvalidArgument and names `origin` (a file name) and the place. Nesting deeper
// than 64 levels is an error, so no text can exhaust the stack.
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view origin);

// As above for a file of at most max_bytes; the errors of ReadFile too.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, size_t max_bytes);

// A value as it may stand in an error message: its JSON text, cut when long.
std::string JsonForMessage(const nlohmann::json& value);

}  // namespace sluice
