// Reads the fields of one JSON object that a client sent, keeping the first error and the names
// that nobody asked for.
//
// The readers leave `out` alone when the field is absent or null. After an error they do nothing,
// so that a list of them reads like a table; ask status() at the end. Errors are FieldError()s
// that tell the field, its value and what is allowed.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace sluice::router {

class JsonFields {
 public:
  // `path` stands before field names in errors: "" or "messages[2].". The object must outlive this.
  JsonFields(const nlohmann::json& object, std::string path);

  // Null when absent, null, or after an error.
  const nlohmann::json* Get(absl::string_view name);

  void Bool(absl::string_view name, bool* out);
  void Text(absl::string_view name, size_t bytes_max, std::string* out);
  // low <= value <= high, or low < value where `above_low`.
  void Float(absl::string_view name, double low, double high, std::optional<float>* out,
             bool above_low = false);
  // A whole number; 3.0 is one.
  template <typename T>
  void Int(absl::string_view name, int64_t low, int64_t high, T* out) {
    if (const auto value = TakeInt(name, low, high); value.has_value()) {
      *out = static_cast<typename ValueOf<T>::type>(*value);
    }
  }
  // Known and allowed, but only with a value that asks for nothing.
  void Neutral(absl::string_view name, const std::vector<nlohmann::json>& neutral_values);
  // Known, and nothing depends on it.
  void Skip(absl::string_view name) { known_.insert(std::string(name)); }

  void Fail(absl::string_view name, absl::string_view wanted);  // "NAME is VALUE, wanted ..."
  void FailWith(absl::Status status);                           // unless there was an error
  const absl::Status& status() const { return status_; }
  std::string PathOf(absl::string_view name) const;

  // Names in the object that no call above mentioned, with the path; sorted.
  std::vector<std::string> Ignored() const;

 private:
  template <typename T>
  struct ValueOf {
    using type = T;
  };
  template <typename T>
  struct ValueOf<std::optional<T>> {
    using type = T;
  };

  std::optional<int64_t> TakeInt(absl::string_view name, int64_t low, int64_t high);

  const nlohmann::json& object_;
  const std::string path_;
  absl::flat_hash_set<std::string> known_;
  absl::Status status_;
};

// The number as an integer, if it is a whole one that int64_t holds.
std::optional<int64_t> WholeNumber(const nlohmann::json& value);

}  // namespace sluice::router
