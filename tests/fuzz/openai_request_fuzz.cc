// Any bytes as the body of each POST. What is accepted must be within the limits that preparation
// and the core rely on; what is refused must be told in JSON that a client can read.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include <nlohmann/json.hpp>

#include "services/model/stop_matcher.h"
#include "services/router/api_error.h"
#include "services/router/openai_request.h"

namespace sluice::router {
namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

void CheckError(const absl::Status& status) {
  Check(status.code() == absl::StatusCode::kInvalidArgument);
  const std::string json = ErrorJson(ToApiError(status));
  Check(nlohmann::json::parse(json)["error"]["message"].is_string());
}

void CheckRange(const std::optional<float>& value, float low, float high) {
  Check(!value.has_value() || (*value >= low && *value <= high));
}

void CheckRequest(const absl::StatusOr<ParsedRequest>& parsed) {
  if (!parsed.ok()) return CheckError(parsed.status());
  const ApiRequest& request = parsed->request;
  const SamplingOptions& sampling = request.sampling;
  CheckRange(sampling.temperature, 0, 100);
  CheckRange(sampling.top_p, std::numeric_limits<float>::denorm_min(), 1);
  CheckRange(sampling.min_p, 0, 1);
  CheckRange(sampling.repetition_penalty, std::numeric_limits<float>::denorm_min(), 100);
  CheckRange(sampling.presence_penalty, -2, 2);
  CheckRange(sampling.frequency_penalty, -2, 2);
  Check(sampling.top_k.value_or(0) >= 0);
  Check(sampling.max_tokens.value_or(1) >= 1);
  Check(!sampling.max_tokens.has_value() || sampling.min_tokens <= *sampling.max_tokens);
  Check(sampling.num_logprobs >= -1 && sampling.num_logprobs <= kTopLogprobsMax);
  Check(sampling.logit_bias.size() <= kLogitBiasMax);
  for (const auto& [id, bias] : sampling.logit_bias) Check(id >= 0 && std::abs(bias) <= 100);
  Check(sampling.stop_token_ids.size() <= kStopTokensMax);
  Check(request.n >= 1 && request.n <= kChoicesMax);
  Check(model::StopMatcher::Create(request.stop, false).ok());
  Check(request.request_id.size() <= kRequestIdBytesMax);
  Check(request.chat ? !request.messages.empty() : !request.prompts.empty());
  for (const auto& message : request.messages) {
    Check(message.role == "system" || message.role == "user" || message.role == "assistant");
  }
  for (const PromptInput& prompt : request.prompts) {
    const auto* ids = std::get_if<std::vector<int32_t>>(&prompt);
    if (ids == nullptr) continue;
    for (const int32_t id : *ids) Check(id >= 0);
  }
}

}  // namespace
}  // namespace sluice::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice::router;
  const absl::string_view body(reinterpret_cast<const char*>(data), size);
  CheckRequest(ParseChatRequest(body));
  CheckRequest(ParseCompletionRequest(body));
  if (const auto parsed = ParseTokenizeRequest(body); !parsed.ok()) CheckError(parsed.status());
  if (const auto parsed = ParseDetokenizeRequest(body); !parsed.ok()) CheckError(parsed.status());
  return 0;
}
