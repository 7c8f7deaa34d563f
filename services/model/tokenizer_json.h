// What a tokenizer.json and a tokenizer_config.json say, parsed and checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/model/added_tokens.h"
#include "services/model/bpe.h"
#include "services/model/pre_tokenizer.h"

namespace sluice::model {

struct TokenizerJson {
  static constexpr int32_t kIdMax = (1 << 22) - 1;

  std::vector<PreTokenizer::Step> pre_tokenizer;
  Bpe::Params bpe;
  std::vector<AddedToken> added_tokens;
  // [ids]: the bytes each token decodes to; empty for ids that are not used.
  std::vector<std::string> token_bytes;
  // The token that the post-processor puts first, if any (TemplateProcessing).
  std::optional<std::string> first_token;
};

// Only what can be computed exactly as Hugging Face does is accepted: a BPE model without unknown
// tokens, prefixes, suffixes, byte fallback and dropout; no normalizer; Split (Isolated), Digits
// and ByteLevel (without add_prefix_space) pre-tokenizers; a ByteLevel decoder. `truncation` and
// `padding` are ignored: a server does neither.
// Errors: InvalidArgument naming the field, the value found and what is supported.
absl::StatusOr<TokenizerJson> ParseTokenizerJson(absl::string_view json);

struct TokenizerConfigJson {
  std::optional<std::string> bos_token;
  std::optional<std::string> eos_token;
  std::optional<std::string> pad_token;
  std::optional<bool> add_bos_token;
  std::string chat_template;
};

// An empty text is an empty object. Errors as above.
absl::StatusOr<TokenizerConfigJson> ParseTokenizerConfigJson(absl::string_view json);

}  // namespace sluice::model
