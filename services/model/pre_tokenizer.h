// Cuts text into words before BPE, as tokenizer.json's `pre_tokenizer` says.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/model/onig_regex.h"

namespace sluice::model {

// The steps work one after the other, each on the pieces of the one before it. Hugging Face's
// byte-level step at the end only rewrites bytes and is left out here (byte_level.h).
//
// Threads: immutable; share freely.
class PreTokenizer {
 public:
  struct Regex {  // Split, behavior Isolated: matches and what lies between them are pieces
    std::string pattern;
  };
  struct Literal {  // the same for a fixed text
    std::string text;
  };
  struct Digits {  // each digit a piece (individual), or each run of digits
    bool individual;
  };
  using Step = std::variant<Regex, Literal, Digits>;

  // DeepSeek-V3's three patterns are recognised and run by hand-written code (deepseek_splitter.h);
  // `use_fast_path` is false only in the tests that compare the two ways.
  // Errors: InvalidArgument for a pattern that is wrong or not supported.
  static absl::StatusOr<PreTokenizer> Create(const std::vector<Step>& steps,
                                             bool use_fast_path = true);

  bool is_fast_path() const { return is_deepseek_; }

  // Emits the pieces in order, none of them empty; together they are `text`.
  // REQUIRES: `text` is valid UTF-8.
  // Errors: Internal if a regular expression gives up.
  absl::Status Split(absl::string_view text, absl::FunctionRef<void(absl::string_view)> emit) const;

 private:
  PreTokenizer() = default;
  absl::Status SplitFrom(size_t step, absl::string_view text,
                         absl::FunctionRef<void(absl::string_view)> emit) const;

  bool is_deepseek_ = false;
  std::vector<std::variant<OnigRegex, Digits>> steps_;
};

}  // namespace sluice::model
