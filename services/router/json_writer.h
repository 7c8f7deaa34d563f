// The pieces of JSON that answers are made of, appended to a string.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace sluice::router {

// `text` in quotes, escaped as RFC 8259 wants. What is not UTF-8 becomes U+FFFD.
void AppendJsonString(absl::string_view text, std::string* out);

// A log-probability in the fewest digits that give the same float back. JSON knows no infinity and
// no NaN: what is below -9999, or no number, becomes -9999.0, as in vLLM.
void AppendLogprob(float value, std::string* out);

}  // namespace sluice::router
