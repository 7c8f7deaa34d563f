#include "services/router/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace sluice::router {
namespace {

// What `sha256sum` says when the variable with the key was empty.
constexpr char kOfNothing[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

}  // namespace

absl::StatusOr<ApiKeys> ApiKeys::Create(absl::Span<const ApiKey> keys) {
  ApiKeys all;
  for (const ApiKey& key : keys) {
    const bool is_hex =
        key.sha256.size() == 64 && std::all_of(key.sha256.begin(), key.sha256.end(),
                                               [](char c) { return absl::ascii_isxdigit(c); });
    if (!is_hex) {
      return absl::InvalidArgumentError(
          absl::StrCat("router.api_keys: the sha256 of \"", key.name,
                       "\" is not 64 hexadecimal digits; make it with: printf %s KEY | sha256sum"));
    }
    if (absl::EqualsIgnoreCase(key.sha256, kOfNothing)) {
      return absl::InvalidArgumentError(absl::StrCat("router.api_keys: the sha256 of \"", key.name,
                                                     "\" is that of no key at all"));
    }
    const std::string bytes = absl::HexStringToBytes(key.sha256);
    Key& added = all.keys_.emplace_back();
    added.name = key.name;
    std::copy(bytes.begin(), bytes.end(), added.sha256.begin());
  }
  return all;
}

absl::StatusOr<std::string> ApiKeys::Authenticate(absl::string_view authorization) const {
  if (!required()) return std::string();
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) {
    return absl::UnauthenticatedError(
        "No API key was given. Send it in the header \"Authorization: Bearer KEY\".");
  }
  const absl::string_view given = absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
  std::array<uint8_t, 32> sha256;
  SHA256(reinterpret_cast<const uint8_t*>(given.data()), given.size(), sha256.data());
  const Key* match = nullptr;
  for (const Key& key : keys_) {
    if (CRYPTO_memcmp(key.sha256.data(), sha256.data(), sha256.size()) == 0) match = &key;
  }
  if (match == nullptr) return absl::UnauthenticatedError("The API key is not valid.");
  return match->name;
}

}  // namespace sluice::router
