// The names of KV pages in prefix caches, and of what must agree before two processes share KV.
//
// A page of 64 tokens is named by a chain, so that equal names mean equal tokens from the first one
// on, the same model and the same tenant:
//   root = SHA-256(model hash || KV layout hash || salt)[0:16]
//   h_i  = SHA-256(h_(i-1) || the 64 tokens of page i, each 32 bits, little endian)[0:16]
// with h_(-1) = root. Only full pages have names.
//
// Threads: PageHasher by one thread at a time; the functions by any.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/base/dtype.h"
#include "services/model/model_config.h"

namespace sluice::model {

using PageHash = std::array<uint8_t, 16>;  // a key for absl's hash containers

// Tokens of a page: kPageTokens of kernels/ops, which this folder does not see.
inline constexpr int64_t kHashPageTokens = 64;

class PageHasher {
 public:
  PageHasher();
  ~PageHasher();
  PageHasher(PageHasher&&) noexcept;
  PageHasher& operator=(PageHasher&&) noexcept;

  // `salt` keeps apart what must not be shared: the tenant, or the client's cache_salt. May be
  // empty.
  PageHash Root(const PageHash& model_hash, const PageHash& kv_layout_hash, absl::string_view salt);

  // The name of the page after `previous` (the root for the first). REQUIRES: kHashPageTokens
  // tokens.
  PageHash Next(const PageHash& previous, absl::Span<const int32_t> page);

  // `hashes` names the first pages of the sequence `tokens`; appends the names of its other full
  // pages. To do a long sequence in slices, pass longer and longer prefixes of it.
  void Extend(const PageHash& root, absl::Span<const int32_t> tokens,
              std::vector<PageHash>* hashes);

 private:
  class Sha256;
  friend absl::StatusOr<PageHash> ModelHash(const std::string& dir);
  friend PageHash KvLayoutHash(const ModelConfig& config, DType kv_dtype);

  std::unique_ptr<Sha256> sha256_;
};

// What makes two processes give the same answers: config.json, tokenizer.json and
// tokenizer_config.json (absent ones are told from empty ones), and of each safetensors file its
// name, size and header. The weights themselves are not read. A directory without safetensors (for
// generated weights) has a hash too. NotFound without config.json; errors of Checkpoint::Open.
absl::StatusOr<PageHash> ModelHash(const std::string& dir);

// What a page's bytes mean: element type, row length, page tokens, layers.
PageHash KvLayoutHash(const ModelConfig& config, DType kv_dtype);

}  // namespace sluice::model
