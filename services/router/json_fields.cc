#include "services/router/json_fields.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/base/json.h"
#include "services/router/api_error.h"

namespace sluice::router {

JsonFields::JsonFields(const nlohmann::json& object, std::string path)
    : object_(object), path_(std::move(path)) {}

std::string JsonFields::PathOf(absl::string_view name) const { return absl::StrCat(path_, name); }

const nlohmann::json* JsonFields::Get(absl::string_view name) {
  const std::string key(name);
  known_.insert(key);
  if (!status_.ok()) return nullptr;
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void JsonFields::Fail(absl::string_view name, absl::string_view wanted) {
  if (!status_.ok()) return;
  const std::string field = PathOf(name);
  const auto found = object_.find(std::string(name));
  status_ = found == object_.end()
                ? FieldError(field, absl::StrCat(field, " is missing, wanted ", wanted))
                : FieldError(field, absl::StrCat(field, " is ", JsonForMessage(*found), ", wanted ",
                                                 wanted));
}

void JsonFields::FailWith(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

void JsonFields::Bool(absl::string_view name, bool* out) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return;
  if (!value->is_boolean()) return Fail(name, "true or false");
  *out = value->get<bool>();
}

void JsonFields::Text(absl::string_view name, size_t bytes_max, std::string* out) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return;
  if (!value->is_string() || value->get_ref<const std::string&>().size() > bytes_max) {
    return Fail(name, absl::StrCat("text of at most ", bytes_max, " bytes"));
  }
  *out = value->get<std::string>();
}

void JsonFields::Float(absl::string_view name, double low, double high, std::optional<float>* out,
                       bool above_low) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return;
  const double number = value->is_number() ? value->get<double>() : NAN;
  // In float, as it will be used: a tiny number may have become the limit that it must not reach.
  const float rounded = static_cast<float>(number);
  const bool allowed = above_low ? rounded > static_cast<float>(low) && number <= high
                                 : number >= low && number <= high;
  if (!allowed) {
    return Fail(name, absl::StrCat("a number ", above_low ? "above " : "from ", low,
                                   above_low ? " and up to " : " to ", high));
  }
  *out = rounded;
}

std::optional<int64_t> WholeNumber(const nlohmann::json& value) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  constexpr double kExact = 9007199254740992;  // 2^53
  const double number = value.get<double>();
  if (!(std::abs(number) <= kExact) || number != std::floor(number)) return std::nullopt;
  return static_cast<int64_t>(number);
}

std::optional<int64_t> JsonFields::TakeInt(absl::string_view name, int64_t low, int64_t high) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = WholeNumber(*value);
  if (!number.has_value() || *number < low || *number > high) {
    Fail(name, absl::StrCat("a whole number from ", low, " to ", high));
    return std::nullopt;
  }
  return number;
}

void JsonFields::Neutral(absl::string_view name,
                         const std::vector<nlohmann::json>& neutral_values) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return;
  if (std::find(neutral_values.begin(), neutral_values.end(), *value) != neutral_values.end()) {
    return;
  }
  const std::string field = PathOf(name);
  const std::string allowed =
      neutral_values.empty() ? std::string("null") : JsonForMessage(neutral_values.front());
  status_ =
      FieldError(field, absl::StrCat(field, " is not supported by this server: leave it out (or ",
                                     allowed, "); it is ", JsonForMessage(*value)));
}

std::vector<std::string> JsonFields::Ignored() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : object_.items()) {
    if (!known_.contains(name)) names.push_back(PathOf(name));
  }
  return names;
}

}  // namespace sluice::router
