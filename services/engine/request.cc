#include "services/engine/request.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice::engine {

int64_t PositionsLimit(const Request& request, int64_t positions_max) {
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  if (request.leg == Leg::kPrefill) return prompt + static_cast<int64_t>(request.output.size());
  const int64_t outputs = std::min(request.sampling.max_tokens, positions_max - prompt);
  return prompt + outputs - 1;
}

absl::Status CheckTokens(const std::string& what, absl::Span<const int32_t> tokens,
                         int64_t vocab_size) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab_size) continue;
    return absl::InvalidArgumentError(absl::StrCat(what, "[", i, "] is token id ", tokens[i],
                                                   ", the vocabulary has ids 0 to ",
                                                   vocab_size - 1));
  }
  return absl::OkStatus();
}

absl::Status ValidateRequest(const Request& request, int64_t vocab_size, int64_t positions_max) {
  SLUICE_RETURN_IF_ERROR(ValidateSamplingParams(request.sampling, vocab_size));
  if (request.prompt.empty()) return absl::InvalidArgumentError("prompt has no tokens");
  SLUICE_RETURN_IF_ERROR(CheckTokens("prompt", request.prompt, vocab_size));
  SLUICE_RETURN_IF_ERROR(CheckTokens("output", request.output, vocab_size));
  const int64_t length = static_cast<int64_t>(request.prompt.size() + request.output.size());
  if (length >= positions_max) {
    return absl::InvalidArgumentError(absl::StrCat("prompt and outputs have ", length,
                                                   " tokens, the context limit is ", positions_max,
                                                   " and at least one must be left to generate"));
  }
  if (static_cast<int64_t>(request.output.size()) >= request.sampling.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("max_tokens is ", request.sampling.max_tokens,
                                                   ", and ", request.output.size(),
                                                   " outputs were sent already"));
  }
  const int64_t full_pages = length / model::kHashPageTokens;
  if (static_cast<int64_t>(request.page_hashes.size()) > full_pages) {
    return absl::InvalidArgumentError(absl::StrCat("page_hashes has ", request.page_hashes.size(),
                                                   " hashes, prompt and outputs fill ", full_pages,
                                                   " pages"));
  }
  return absl::OkStatus();
}

}  // namespace sluice::engine
