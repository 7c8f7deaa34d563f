// Finds added tokens (control tokens and others outside the BPE model) in a text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "services/model/tokenizer.h"

namespace sluice::model {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character is next to it
  bool lstrip = false;       // swallows white space before it
  bool rstrip = false;       // and after it
  bool normalized = true;    // looked for after those with normalized = false
  bool special = false;

  // See AddedTokenMode::kPlainText.
  bool IsPlainText() const;
};

// Threads: immutable; share freely.
// Source: Hugging Face tokenizers, tokenizer/added_vocabulary.rs. (No normalizer is supported, so
// `normalized` only decides which of two passes looks for the token.)
class AddedTokens {
 public:
  // REQUIRES: contents are valid UTF-8, not empty, and all different.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  const AddedToken* Find(absl::string_view content) const;  // nullptr: none

  // Cuts `text` at the tokens that `mode` recognises. `emit` gets, in order, either a piece of
  // ordinary text, not empty, and nullptr; or an empty piece and a token. An error ends it.
  // Where several tokens match, the leftmost wins, then the longest; one that matches but is not
  // to be recognised is ordinary text, and no other token is looked for inside of it.
  // REQUIRES: `text` is valid UTF-8.
  using Emit = absl::FunctionRef<absl::Status(absl::string_view piece, const AddedToken* token)>;
  absl::Status Split(absl::string_view text, AddedTokenMode mode, Emit emit) const;

 private:
  // The contents of one pass, by their bytes.
  struct Trie {
    bool starts[256] = {};                            // bytes that some content begins with
    absl::flat_hash_map<uint64_t, int32_t> children;  // node << 8 | byte -> node; the root is 0
    std::vector<int32_t> token;                       // [nodes]: index into tokens_, or -1
    void Add(absl::string_view content, int32_t index);
  };

  absl::Status SplitPass(const Trie& trie, absl::string_view text, AddedTokenMode mode,
                         Emit emit) const;
  // The longest token that begins at text[at], or nullptr.
  const AddedToken* LongestAt(const Trie& trie, absl::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<std::string, int32_t> index_of_content_;
  Trie not_normalized_;
  Trie normalized_;
};

}  // namespace sluice::model
