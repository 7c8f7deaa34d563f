// Reading and writing a YAML file by one description of its keys.
//
// The description is a function that names each key with the variable that holds it:
//
//   void Describe(ConfigVisitor& v, LoggingSection& s) { v.Choice("format", &s.format, {"json",
//   "text"}); }
//
// ReadConfig() runs it to fill the variables in; WriteConfig() runs it to write them out.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace sluice {

// "HOST:PORT"; IPv6 hosts in brackets.
struct Address {
  std::string host;
  int port = 0;                  // 0..65535
  std::string ToString() const;  // "127.0.0.1:8000", "[::1]:8000"
  bool operator==(const Address&) const = default;
};

class ConfigVisitor {
 public:
  virtual ~ConfigVisitor() = default;

  // A key that the file does not have leaves its variable as it is. Ranges include their ends.
  virtual void Text(absl::string_view key, std::string* value) = 0;
  virtual void Choice(absl::string_view key, std::string* value,
                      std::initializer_list<absl::string_view> choices) = 0;
  virtual void Bool(absl::string_view key, bool* value) = 0;
  virtual void Number(absl::string_view key, int64_t* value, int64_t min, int64_t max) = 0;
  // Bytes: "64KiB", "512MiB", "4GiB", "1TiB", or a plain number.
  virtual void Size(absl::string_view key, uint64_t* value, uint64_t min, uint64_t max) = 0;
  virtual void Duration(absl::string_view key, absl::Duration* value, absl::Duration min,
                        absl::Duration max) = 0;
  virtual void HostPort(absl::string_view key, Address* value) = 0;

  // A map of keys below this one.
  virtual void Section(absl::string_view key, absl::FunctionRef<void(ConfigVisitor&)> describe) = 0;

  // A list of maps.
  template <typename T, typename Describe>
  void List(absl::string_view key, std::vector<T>* items, Describe describe) {
    if (const std::optional<size_t> size = ListSize(key, items->size())) items->resize(*size);
    for (size_t i = 0; i < items->size(); ++i) {
      ListItem(key, i, [&](ConfigVisitor& item) { describe(item, (*items)[i]); });
    }
  }

  // As Number and Size, for other types of variable.
  template <typename T>
  void Int(absl::string_view key, T* value, int64_t min, int64_t max) {
    int64_t wide = static_cast<int64_t>(*value);
    Number(key, &wide, min, max);
    *value = static_cast<T>(wide);
  }
  void OptionalInt(absl::string_view key, std::optional<uint64_t>* value, int64_t min,
                   int64_t max) {
    if (!Wanted(key, value->has_value())) return;
    if (!value->has_value()) *value = 0;
    Int(key, &**value, min, max);
  }
  void OptionalSize(absl::string_view key, std::optional<uint64_t>* value, uint64_t min,
                    uint64_t max) {
    if (!Wanted(key, value->has_value())) return;
    if (!value->has_value()) *value = 0;
    Size(key, &**value, min, max);
  }

  // When reading: notes that the value at `key` (or the section, when the file does not have it) is
  // wrong, whatever its own range says. "router.http: <what>".
  virtual void Problem(absl::string_view key, absl::string_view what) = 0;
  // When reading: whether the file has no key here, nor in a section before, that nothing has asked
  // for. What seems to be missing may stand under such a key.
  virtual bool KnowsAllKeys() const = 0;

 protected:
  // Whether to go into an optional value: it is in the file, or (when writing) in the variable.
  virtual bool Wanted(absl::string_view key, bool has_value) = 0;
  virtual std::optional<size_t> ListSize(absl::string_view key, size_t size) = 0;
  virtual void ListItem(absl::string_view key, size_t index,
                        absl::FunctionRef<void(ConfigVisitor&)> describe) = 0;
};

// InvalidArgument with everything that is wrong, each on a line "PATH:LINE: KEY: what". At most ten
// are told. Text longer than 1 MiB is refused. `path` is only for messages.
absl::Status ReadConfig(absl::string_view text, absl::string_view path,
                        absl::FunctionRef<void(ConfigVisitor&)> describe);

std::string WriteConfig(absl::FunctionRef<void(ConfigVisitor&)> describe);

}  // namespace sluice
