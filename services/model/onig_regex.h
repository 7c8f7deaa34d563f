// Regular expressions as Hugging Face `tokenizers` writes them (Oniguruma's syntax), run by PCRE2.
#pragma once

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct pcre2_real_code_8;

namespace sluice::model {

// Constructs that mean the same in both are passed on, \s and \S are spelt out, and what could mean
// something else (\w, \b, \h, nested classes, `{,n}`, `}+`, inline options other than (?i:)) is
// refused: Create() never accepts a pattern that would match differently, but for one thing.
// PCRE2 10.42's \p{..} follow Unicode 14, those of tokenizers 0.23 Unicode 16: characters that
// were assigned in between are "unassigned" here. DeepSeek's own patterns do not come this way
// (deepseek_splitter.h).
//
// Threads: immutable; share freely.
class OnigRegex {
 public:
  // Errors: InvalidArgument with the pattern, the place and what is wrong there.
  static absl::StatusOr<OnigRegex> Create(absl::string_view pattern);

  // A regular expression for exactly `text`.
  static absl::StatusOr<OnigRegex> CreateLiteral(absl::string_view text);

  // Cuts `text` into its matches and what lies between them, in order, none of them empty.
  // `emit` may return an error, which ends it.
  // REQUIRES: `text` is valid UTF-8.
  // Errors: Internal if the matcher gives up (its limits on backtracking).
  absl::Status Split(absl::string_view text,
                     absl::FunctionRef<absl::Status(absl::string_view)> emit) const;

 private:
  explicit OnigRegex(pcre2_real_code_8* code);
  static absl::StatusOr<OnigRegex> Compile(const std::string& pcre2_pattern,
                                           absl::string_view shown);

  std::shared_ptr<const pcre2_real_code_8> code_;
};

}  // namespace sluice::model
