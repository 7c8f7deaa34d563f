#include "services/base/json.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/mapped_file.h"

namespace sluice {
namespace {

constexpr int kMaxDepth = 64;

struct TooDeep {};

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view origin) {
  const auto limit_depth = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > kMaxDepth) throw TooDeep();
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), limit_depth);
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": is not JSON: ", error.what()));
  } catch (const TooDeep&) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": is nested deeper than ", kMaxDepth, " levels"));
  }
}

absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, size_t max_bytes) {
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, max_bytes));
  return ParseJson(text, path);
}

std::string JsonForMessage(const nlohmann::json& value) {
  constexpr size_t kLength = 60;
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  if (text.size() > kLength) text = text.substr(0, kLength) + "...";
  return text;
}

}  // namespace sluice
