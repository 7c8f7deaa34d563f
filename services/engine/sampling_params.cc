#include "services/engine/sampling_params.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice::engine {
namespace {

absl::Status CheckRange(const char* field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();  // NaN fails
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", allowed is ", low, " to ", high));
}

absl::Status CheckTokenId(const char* field, int32_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " holds token id ", id,
                                                 ", the vocabulary has ids 0 to ", vocab_size - 1));
}

absl::Status CheckCount(const char* field, size_t count, size_t max) {
  if (count <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", count, " entries, allowed are ", max));
}

}  // namespace

absl::Status ValidateSamplingParams(const SamplingParams& params, int64_t vocab_size) {
  SLUICE_RETURN_IF_ERROR(CheckRange("temperature", params.temperature, 0, 100));
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_p is ", params.top_p, ", allowed is above 0 and up to 1"));
  }
  SLUICE_RETURN_IF_ERROR(CheckRange("top_k", params.top_k, 0, INT32_MAX));
  SLUICE_RETURN_IF_ERROR(CheckRange("min_p", params.min_p, 0, 1));
  if (!(params.repetition_penalty > 0 && params.repetition_penalty <= 100)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "repetition_penalty is ", params.repetition_penalty, ", allowed is above 0 and up to 100"));
  }
  SLUICE_RETURN_IF_ERROR(CheckRange("presence_penalty", params.presence_penalty, -2, 2));
  SLUICE_RETURN_IF_ERROR(CheckRange("frequency_penalty", params.frequency_penalty, -2, 2));
  SLUICE_RETURN_IF_ERROR(CheckCount("logit_bias", params.logit_bias.size(), kLogitBiasMax));
  for (const auto& [id, bias] : params.logit_bias) {
    SLUICE_RETURN_IF_ERROR(CheckTokenId("logit_bias", id, vocab_size));
    SLUICE_RETURN_IF_ERROR(CheckRange("logit_bias", bias, -100, 100));
  }
  if (params.max_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens is ", params.max_tokens, ", it must be at least 1"));
  }
  if (params.min_tokens < 0 || params.min_tokens > params.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("min_tokens is ", params.min_tokens,
                                                   ", allowed is 0 to max_tokens (",
                                                   params.max_tokens, ")"));
  }
  SLUICE_RETURN_IF_ERROR(
      CheckCount("stop_token_ids", params.stop_token_ids.size(), kStopTokensMax));
  for (const int32_t id : params.stop_token_ids) {
    SLUICE_RETURN_IF_ERROR(CheckTokenId("stop_token_ids", id, vocab_size));
  }
  return CheckRange("logprobs", params.num_logprobs, -1,
                    static_cast<double>(std::min<int64_t>(kLogprobsMax, vocab_size)));
}

}  // namespace sluice::engine
