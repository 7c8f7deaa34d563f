// What a client asks for, whichever API it came through: OpenAI's HTTP (openai_request.h) or gRPC
// (grpc_api.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "services/model/chat_template.h"

namespace sluice::router {

// Unset: generation_config.json's value, then the one that turns it off.
struct SamplingOptions {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<float> presence_penalty, frequency_penalty;
  std::optional<int32_t> top_k;  // 0: off
  std::optional<uint64_t> seed;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<uint32_t> max_tokens;          // unset: max_tokens_default, or to the context limit
  std::optional<uint32_t> max_tokens_default;  // never a reason to refuse: as far as there is room
  uint32_t min_tokens = 0;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int32_t num_logprobs = -1;  // -1: none; 0: of each token; n: and of the n most probable
};

// Text, of which control tokens are recognised, or token ids, taken as they are.
using PromptInput = std::variant<std::string, std::vector<int32_t>>;

struct ApiRequest {
  bool chat = false;  // messages, else prompts
  std::string model;  // empty: the one that is served
  std::vector<model::ChatMessage> messages;
  bool thinking = false;
  std::vector<PromptInput> prompts;  // each gets n answers: prompt p has the choices p*n to p*n+n-1
  bool add_special_tokens = true;    // BOS before prompts that are text

  SamplingOptions sampling;
  uint32_t n = 1;
  std::vector<std::string> stop;
  bool include_stop = false;  // the stop string or stop token is part of the text
  bool skip_special_tokens = true;

  bool include_reasoning = true;
  bool separate_reasoning = true;  // false: reasoning is part of the content
  bool stream_reasoning = true;    // false: it comes in one piece

  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;  // usage with every chunk
  bool echo = false;              // the prompt before the answer
  bool return_token_ids = false;
  bool tokens_as_ids = false;  // in logprobs: "token_id:42"

  // At most so many tokens of the prompt, cut from the left; -1: as many as fit.
  std::optional<int64_t> truncate_prompt_tokens;
  uint32_t priority = 0;
  std::string cache_salt;
  std::string request_id;
};

// Bounds on what one request may hold, whatever the API.
inline constexpr uint32_t kChoicesMax = 128;  // prompts times n
inline constexpr int32_t kTopLogprobsMax = 20;
inline constexpr size_t kLogitBiasMax = 1024;
inline constexpr size_t kStopTokensMax = 128;
inline constexpr size_t kRequestIdBytesMax = 256;
inline constexpr size_t kCacheSaltBytesMax = 256;

// A message's role as templates know it: "developer" becomes "system". False for any that is none
// of kRoles.
bool ToTemplateRole(std::string* role);
inline constexpr char kRoles[] = "\"system\", \"developer\", \"user\" or \"assistant\"";

// Fields that are right one by one, and not together: echo and logprobs, n and the number of
// prompts. Errors: FieldError (api_error.h); `path` is what stands before the fields' names.
absl::Status CheckTogether(const ApiRequest& request, absl::string_view path);

}  // namespace sluice::router
