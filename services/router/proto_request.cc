#include "services/router/proto_request.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/json.h"
#include "services/model/stop_matcher.h"
#include "services/router/api_error.h"

namespace sluice::router {
namespace {

constexpr uint32_t kIdMax = std::numeric_limits<int32_t>::max();
constexpr int64_t kTokensMax = std::numeric_limits<uint32_t>::max();

template <typename T>
absl::Status Wrong(absl::string_view field, const T& value, absl::string_view wanted) {
  return FieldError(field, absl::StrCat(field, " is ", value, ", wanted ", wanted));
}

absl::Status CheckFloat(const char* field, bool is_set, float value, double low, double high,
                        bool above_low, std::optional<float>* out) {
  if (!is_set) return absl::OkStatus();
  const bool allowed = (above_low ? value > low : value >= low) && value <= high;  // NaN is not
  if (!allowed) {
    return Wrong(field, value,
                 absl::StrCat("a number ", above_low ? "above " : "from ", low,
                              above_low ? " and up to " : " to ", high));
  }
  *out = value;
  return absl::OkStatus();
}

template <typename Ids>
absl::StatusOr<std::vector<int32_t>> ToIds(const Ids& ids, absl::string_view field) {
  std::vector<int32_t> out;
  out.reserve(static_cast<size_t>(ids.size()));
  for (const uint32_t id : ids) {
    if (id > kIdMax) return Wrong(field, id, "token ids");
    out.push_back(static_cast<int32_t>(id));
  }
  return out;
}

absl::Status CheckText(const char* field, const std::string& text, size_t bytes_max) {
  if (text.size() <= bytes_max) return absl::OkStatus();
  return FieldError(
      field, absl::StrCat(field, " has ", text.size(), " bytes, wanted at most ", bytes_max));
}

absl::Status FillSampling(const v1::GenerationOptions& options, SamplingOptions* out) {
  SLUICE_RETURN_IF_ERROR(CheckFloat("options.temperature", options.has_temperature(),
                                    options.temperature(), 0, 100, false, &out->temperature));
  SLUICE_RETURN_IF_ERROR(
      CheckFloat("options.top_p", options.has_top_p(), options.top_p(), 0, 1, true, &out->top_p));
  SLUICE_RETURN_IF_ERROR(
      CheckFloat("options.min_p", options.has_min_p(), options.min_p(), 0, 1, false, &out->min_p));
  SLUICE_RETURN_IF_ERROR(CheckFloat("options.repetition_penalty", options.has_repetition_penalty(),
                                    options.repetition_penalty(), 0, 100, true,
                                    &out->repetition_penalty));
  SLUICE_RETURN_IF_ERROR(CheckFloat("options.presence_penalty", options.has_presence_penalty(),
                                    options.presence_penalty(), -2, 2, false,
                                    &out->presence_penalty));
  SLUICE_RETURN_IF_ERROR(CheckFloat("options.frequency_penalty", options.has_frequency_penalty(),
                                    options.frequency_penalty(), -2, 2, false,
                                    &out->frequency_penalty));
  if (options.has_top_k()) {
    if (options.top_k() < -1) return Wrong("options.top_k", options.top_k(), "-1 or more");
    out->top_k = std::max(options.top_k(), 0);
  }
  if (options.has_seed()) out->seed = options.seed();
  if (options.logit_bias_size() > static_cast<int>(kLogitBiasMax)) {
    return Wrong("options.logit_bias", absl::StrCat(options.logit_bias_size(), " entries long"),
                 absl::StrCat("at most ", kLogitBiasMax));
  }
  for (const auto& [id, bias] : options.logit_bias()) {
    if (id > kIdMax || !(bias >= -100 && bias <= 100)) {
      return Wrong("options.logit_bias", absl::StrCat("{", id, ": ", bias, "}"),
                   "token ids and numbers from -100 to 100");
    }
    out->logit_bias.emplace_back(static_cast<int32_t>(id), bias);
  }
  if (options.has_max_tokens()) {
    if (options.max_tokens() == 0) return Wrong("options.max_tokens", 0, "1 or more");
    out->max_tokens = options.max_tokens();
    if (options.min_tokens() > options.max_tokens()) {
      return Wrong("options.min_tokens", options.min_tokens(),
                   absl::StrCat("at most max_tokens (", options.max_tokens(), ")"));
    }
  }
  out->min_tokens = options.min_tokens();
  if (options.stop_token_ids_size() > static_cast<int>(kStopTokensMax)) {
    return Wrong("options.stop_token_ids",
                 absl::StrCat(options.stop_token_ids_size(), " entries long"),
                 absl::StrCat("at most ", kStopTokensMax));
  }
  SLUICE_ASSIGN_OR_RETURN(out->stop_token_ids,
                          ToIds(options.stop_token_ids(), "options.stop_token_ids"));
  out->ignore_eos = options.ignore_eos();
  if (options.has_logprobs()) {
    if (options.logprobs() > static_cast<uint32_t>(kTopLogprobsMax)) {
      return Wrong("options.logprobs", options.logprobs(),
                   absl::StrCat("at most ", kTopLogprobsMax));
    }
    out->num_logprobs = static_cast<int32_t>(options.logprobs());
  }
  return absl::OkStatus();
}

absl::Status FillTruncation(const v1::GenerationOptions& options, ApiRequest* out) {
  if (options.truncate_prompt()) out->truncate_prompt_tokens = -1;
  if (!options.has_truncate_prompt_tokens()) return absl::OkStatus();
  const int64_t tokens = options.truncate_prompt_tokens();
  if (tokens < -1 || tokens > kTokensMax) {
    return Wrong("options.truncate_prompt_tokens", tokens,
                 absl::StrCat("a whole number from -1 to ", kTokensMax));
  }
  if (tokens == 0) {
    return Wrong("options.truncate_prompt_tokens", tokens,
                 "-1 (what fits) or a whole number of at least 1");
  }
  out->truncate_prompt_tokens = tokens;
  return absl::OkStatus();
}

absl::Status FillOptions(const v1::GenerationOptions& options, ApiRequest* out) {
  SLUICE_RETURN_IF_ERROR(FillSampling(options, &out->sampling));
  if (options.n() > kChoicesMax) {
    return Wrong("options.n", options.n(), absl::StrCat("at most ", kChoicesMax));
  }
  out->n = std::max<uint32_t>(options.n(), 1);
  out->stop.assign(options.stop().begin(), options.stop().end());
  const auto matcher = model::StopMatcher::Create(out->stop, /*include_stop=*/false);
  if (!matcher.ok()) return FieldError("options.stop", matcher.status().message());
  SLUICE_RETURN_IF_ERROR(CheckText("options.request_id", options.request_id(), kRequestIdBytesMax));
  SLUICE_RETURN_IF_ERROR(CheckText("options.cache_salt", options.cache_salt(), kCacheSaltBytesMax));
  out->request_id = options.request_id();
  out->priority = options.priority();
  out->cache_salt = options.cache_salt();
  SLUICE_RETURN_IF_ERROR(FillTruncation(options, out));
  out->include_stop = options.include_stop();
  if (options.has_skip_special_tokens()) out->skip_special_tokens = options.skip_special_tokens();
  out->continuous_usage = options.continuous_usage();
  out->stream = true;
  out->return_token_ids = true;
  return absl::OkStatus();
}

absl::Status AppendIds(const v1::TokenIds& message, absl::string_view field,
                       std::vector<PromptInput>* prompts) {
  SLUICE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, ToIds(message.ids(), field));
  prompts->emplace_back(std::move(ids));
  return absl::OkStatus();
}

absl::Status FillPromptList(const v1::PromptList& list, std::vector<PromptInput>* prompts) {
  if (list.prompts().empty() || list.prompts_size() > static_cast<int>(kChoicesMax)) {
    return Wrong("prompts", absl::StrCat(list.prompts_size(), " entries long"),
                 absl::StrCat("1 to ", kChoicesMax));
  }
  for (int i = 0; i < list.prompts_size(); ++i) {
    const v1::TextOrTokens& prompt = list.prompts(i);
    const std::string field = absl::StrCat("prompts[", i, "]");
    switch (prompt.input_case()) {
      case v1::TextOrTokens::kText:
        prompts->emplace_back(prompt.text());
        break;
      case v1::TextOrTokens::kTokenIds:
        SLUICE_RETURN_IF_ERROR(AppendIds(prompt.token_ids(), field, prompts));
        break;
      case v1::TextOrTokens::INPUT_NOT_SET:
        return FieldError(field, absl::StrCat(field, " is missing, wanted text or token_ids"));
    }
  }
  return absl::OkStatus();
}

absl::Status FillPrompts(const v1::GenerateRequest& message, std::vector<PromptInput>* prompts) {
  switch (message.input_case()) {
    case v1::GenerateRequest::kText:
      prompts->emplace_back(message.text());
      return absl::OkStatus();
    case v1::GenerateRequest::kTokenIds:
      return AppendIds(message.token_ids(), "token_ids", prompts);
    case v1::GenerateRequest::kPrompts:
      return FillPromptList(message.prompts(), prompts);
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return FieldError("input", "input is missing, wanted text, token_ids or prompts");
}

using MessageList = google::protobuf::RepeatedPtrField<v1::ChatMessage>;

absl::Status FillMessages(const MessageList& messages, std::vector<model::ChatMessage>* out) {
  if (messages.empty()) return Wrong("messages", "[]", "a list of at least one message");
  for (const v1::ChatMessage& message : messages) {
    std::string role = message.role();
    if (!ToTemplateRole(&role)) {
      return Wrong(absl::StrCat("messages[", out->size(), "].role"), JsonForMessage(role), kRoles);
    }
    out->push_back({.role = std::move(role), .content = message.content()});
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ParsedRequest> FromProto(const v1::GenerateRequest& message) {
  ParsedRequest parsed;
  ApiRequest& request = parsed.request;
  request.model = message.model();
  SLUICE_RETURN_IF_ERROR(FillPrompts(message, &request.prompts));
  SLUICE_RETURN_IF_ERROR(FillOptions(message.options(), &request));
  request.echo = message.echo();
  if (message.has_add_special_tokens()) request.add_special_tokens = message.add_special_tokens();
  SLUICE_RETURN_IF_ERROR(CheckTogether(request, "options."));
  return parsed;
}

absl::StatusOr<ParsedRequest> FromProto(const v1::ChatRequest& message) {
  ParsedRequest parsed;
  ApiRequest& request = parsed.request;
  request.chat = true;
  request.model = message.model();
  SLUICE_RETURN_IF_ERROR(FillMessages(message.messages(), &request.messages));
  request.thinking = message.thinking();
  if (message.has_include_reasoning()) request.include_reasoning = message.include_reasoning();
  if (message.has_separate_reasoning()) request.separate_reasoning = message.separate_reasoning();
  if (message.has_stream_reasoning()) request.stream_reasoning = message.stream_reasoning();
  SLUICE_RETURN_IF_ERROR(FillOptions(message.options(), &request));
  return parsed;
}

absl::StatusOr<TokenizeBody> FromProto(const v1::TokenizeRequest& message) {
  TokenizeBody parsed{.model = message.model(),
                      .plain = message.no_special_tokens(),
                      .return_token_strs = message.return_token_strs()};
  if (!message.messages().empty()) {
    parsed.chat = true;
    parsed.thinking = message.thinking();
    SLUICE_RETURN_IF_ERROR(FillMessages(message.messages(), &parsed.messages));
    return parsed;
  }
  parsed.prompt = message.text();
  if (message.has_add_special_tokens()) parsed.add_special_tokens = message.add_special_tokens();
  return parsed;
}

v1::GenerateChunk ToProto(const ChoiceDelta& delta) {
  v1::GenerateChunk chunk;
  chunk.set_index(delta.index);
  for (const int32_t id : delta.token_ids) chunk.add_token_ids(static_cast<uint32_t>(id));
  chunk.set_text_delta(delta.content);
  chunk.set_reasoning_delta(delta.reasoning);
  for (const TokenLogprob& entry : delta.logprobs) {
    v1::TokenLogprob* out = chunk.add_logprobs();
    out->set_token_id(static_cast<uint32_t>(entry.id));
    out->set_logprob(entry.logprob);
    for (const auto& [id, logprob] : entry.top) {
      v1::TopLogprob* top = out->add_top();
      top->set_token_id(static_cast<uint32_t>(id));
      top->set_logprob(logprob);
    }
  }
  if (delta.end.has_value()) {
    chunk.set_finish_reason(delta.end->length ? v1::FINISH_REASON_LENGTH : v1::FINISH_REASON_STOP);
    if (const auto* text = std::get_if<std::string>(&delta.end->stop_reason)) {
      chunk.set_matched_stop(*text);
    } else if (const auto* id = std::get_if<int32_t>(&delta.end->stop_reason)) {
      chunk.set_matched_stop_token(static_cast<uint32_t>(*id));
    }
  }
  return chunk;
}

v1::Usage ToProto(const ApiUsage& usage) {
  v1::Usage out;
  out.set_prompt_tokens(usage.prompt_tokens);
  out.set_completion_tokens(usage.completion_tokens);
  out.set_cached_tokens(usage.cached_tokens);
  out.set_reasoning_tokens(usage.reasoning_tokens);
  return out;
}

v1::Timings ToProto(const Timings& timings) {
  v1::Timings out;
  out.set_queue_ms(absl::ToDoubleMilliseconds(timings.queue));
  out.set_prefill_ms(absl::ToDoubleMilliseconds(timings.prefill));
  out.set_transfer_ms(absl::ToDoubleMilliseconds(timings.transfer));
  out.set_first_token_ms(absl::ToDoubleMilliseconds(timings.first_token));
  out.set_total_ms(absl::ToDoubleMilliseconds(timings.total));
  return out;
}

}  // namespace sluice::router
