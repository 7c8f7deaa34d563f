// Log-probabilities in the two shapes of OpenAI's API.
//
// A token is written as its text, of which no UTF-8 is U+FFFD; or with `as_ids` as "token_id:42".
#pragma once

#include <cstddef>
#include <string>

#include "absl/types/span.h"
#include "services/model/tokenizer.h"
#include "services/router/reply_stream.h"

namespace sluice::router {

// {"content":[{"token","logprob","bytes","top_logprobs":[...]}],"refusal":null}
void AppendChatLogprobs(absl::Span<const TokenLogprob> logprobs, const model::Tokenizer& tokenizer,
                        bool as_ids, std::string* out);

// {"tokens":[],"token_logprobs":[],"top_logprobs":[{}],"text_offset":[]}; `text_offset` counts the
// characters of the answer's tokens so far. Tokens that are written alike have one entry in
// top_logprobs: that of the most probable.
void AppendCompletionLogprobs(absl::Span<const TokenLogprob> logprobs,
                              const model::Tokenizer& tokenizer, bool as_ids, size_t* text_offset,
                              std::string* out);

}  // namespace sluice::router
