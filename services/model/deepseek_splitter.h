// DeepSeek-V3's pre-tokenizer regular expressions, written by hand.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace sluice::model {

// The three patterns of tokenizer.json, applied one after the other, each to the pieces of the one
// before it, that SplitDeepSeek() stands for.
inline constexpr absl::string_view kDeepSeekPatterns[3] = {
    R"(\p{N}{1,3})",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    "|\\s+(?!\\S)"
    "|\\s+",
};

// Emits the pieces of `text` in order, none of them empty. Linear time, no backtracking, and the
// reference's own Unicode version (unicode_classes.h).
// REQUIRES: `text` is valid UTF-8.
void SplitDeepSeek(absl::string_view text, absl::FunctionRef<void(absl::string_view)> emit);

}  // namespace sluice::model
