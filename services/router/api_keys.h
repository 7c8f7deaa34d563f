// Who may ask. Keys are known by their SHA-256 only.
//
// Threads: immutable.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/base/cluster_config.h"

namespace sluice::router {

class ApiKeys {
 public:
  // Errors: InvalidArgument naming the key whose sha256 is not 64 hexadecimal digits.
  static absl::StatusOr<ApiKeys> Create(absl::Span<const ApiKey> keys);

  // Without keys everybody may ask.
  bool required() const { return !keys_.empty(); }

  // The name of the key in an Authorization header ("Bearer KEY"); empty when none is required.
  // Every key is compared in full, whichever matches. Unauthenticated.
  absl::StatusOr<std::string> Authenticate(absl::string_view authorization) const;

 private:
  struct Key {
    std::string name;
    std::array<uint8_t, 32> sha256;
  };
  std::vector<Key> keys_;
};

}  // namespace sluice::router
