#include "services/base/json.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/mapped_file.h"

namespace sluice {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kErrorBytes = 300;

// Of any text that is JSON as far as a parser gets: there strings are where they are here. (A
// callback of the parser could tell, too, but with one it takes a time that is quadratic in the
// number of objects in a list.)
bool IsTooDeep(absl::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;  // a quotation mark behind it ends nothing
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view origin) {
  if (IsTooDeep(text)) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": is nested deeper than ", kMaxDepth, " levels"));
  }
  try {
    return nlohmann::json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& error) {
    // It shows all of the word or text at which it ends, which may be most of the file.
    const absl::string_view what = error.what();
    return absl::InvalidArgumentError(absl::StrCat(origin,
                                                   ": is not JSON: ", what.substr(0, kErrorBytes),
                                                   what.size() > kErrorBytes ? "..." : ""));
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
