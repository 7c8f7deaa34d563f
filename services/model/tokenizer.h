// Text to token ids and back, as a checkpoint's tokenizer.json says: byte-level BPE behind a
// sequence of pre-tokenizers, with added tokens. Ids are identical to Hugging Face `tokenizers`.
//
// Threads: immutable after loading; every method may be called from many threads at once.
// Source: Hugging Face tokenizers 0.23 (the reference for ids and for decoding).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace sluice::model {

// Which added tokens (control tokens such as <｜User｜>, and others) are recognised in a text.
// What is not recognised is encoded as the ordinary characters it consists of.
enum class AddedTokenMode {
  // All of them: raw prompts, written by somebody who may use control tokens.
  kAll,
  // Those not marked special: exactly Hugging Face's `encode_special_tokens = true`. DeepSeek-V3
  // marks <｜User｜>, <think> and others as not special, so this mode still recognises them.
  kNonSpecial,
  // Those that are plain text: not special and without any of < > [ ] | ｜ in them (DeepSeek-V2
  // has a few, such as "ü"). For message contents in a chat, which must not smuggle in control.
  kPlainText,
};

struct EncodeOptions {
  AddedTokenMode added_tokens = AddedTokenMode::kAll;
  bool add_bos = false;  // put bos_id() first, whatever add_bos_token() says
};

class Tokenizer {
 public:
  // Reads DIR/tokenizer.json and, where present, DIR/tokenizer_config.json and
  // DIR/chat_template.jinja. Errors: NotFound or InvalidArgument, naming the file, the field, the
  // value and what is supported.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(const std::string& dir);

  // The same from the texts of the two files; `tokenizer_config_json` may be empty.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> FromJson(
      absl::string_view tokenizer_json, absl::string_view tokenizer_config_json);

  virtual ~Tokenizer() = default;

  // Invalid UTF-8 is replaced first, as Python's bytes.decode("utf-8", errors="replace") does.
  // Time is linear in the text's length (n log n for one unbroken word).
  // Errors: Internal if a regular expression of the tokenizer gives up on this text.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                                      const EncodeOptions& options) const = 0;

  // A raw prompt: all added tokens are recognised and add_bos_token() is honoured.
  absl::StatusOr<std::vector<int32_t>> EncodePrompt(absl::string_view text) const {
    return Encode(text, {.added_tokens = AddedTokenMode::kAll, .add_bos = add_bos_token()});
  }

  // The text of whole tokens; what is not UTF-8 becomes U+FFFD as in Encode. Unknown ids give
  // nothing. Detokenizer (detokenizer.h) does the same token by token.
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special) const;

  // The bytes that a token stands for; empty for an unknown id. Valid as long as the tokenizer.
  virtual absl::string_view TokenBytes(int32_t id) const = 0;

  // The id of an added token, given as it is written ("</think>").
  virtual std::optional<int32_t> AddedTokenId(absl::string_view content) const = 0;

  virtual bool IsSpecial(int32_t id) const = 0;  // false for unknown ids

  // One more than the largest id; a model's vocab_size may be larger (padded), not smaller.
  virtual int32_t vocab_size() const = 0;

  // -1: none.
  virtual int32_t bos_id() const = 0;
  virtual int32_t eos_id() const = 0;
  virtual int32_t pad_id() const = 0;

  // Whether raw prompts begin with bos_id().
  virtual bool add_bos_token() const = 0;

  // The Jinja source of the chat template, empty if the checkpoint has none (chat_template.h).
  virtual const std::string& chat_template() const = 0;
};

}  // namespace sluice::model
