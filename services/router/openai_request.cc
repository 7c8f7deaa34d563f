#include "services/router/openai_request.h"

#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/json.h"
#include "services/model/stop_matcher.h"
#include "services/router/api_error.h"
#include "services/router/json_fields.h"
#include "services/router/openai_messages.h"

namespace sluice::router {
namespace {

using Json = nlohmann::json;

constexpr int64_t kIdMax = std::numeric_limits<int32_t>::max();
constexpr int64_t kTokensMax = std::numeric_limits<uint32_t>::max();
constexpr size_t kTextMax = size_t{1} << 30;  // bounded by the body's size already

absl::StatusOr<Json> ParseBody(absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(Json json, ParseJson(body, "request body"));
  if (json.is_object()) return json;
  return absl::InvalidArgumentError(
      absl::StrCat("request body: is ", JsonForMessage(json), ", wanted a JSON object"));
}

absl::StatusOr<std::vector<int32_t>> ParseIds(const Json& list, const std::string& field) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const Json& entry : list) {
    const auto id = WholeNumber(entry);
    if (!id.has_value() || *id < 0 || *id > kIdMax) {
      return FieldError(field, absl::StrCat(field, "[", ids.size(), "] is ", JsonForMessage(entry),
                                            ", wanted a token id"));
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

void ParseIdList(const char* name, JsonFields* fields, std::vector<int32_t>* out) {
  const Json* list = fields->Get(name);
  if (list == nullptr) return;
  if (!list->is_array() || list->size() > kStopTokensMax) {
    return fields->Fail(name, absl::StrCat("a list of at most ", kStopTokensMax, " token ids"));
  }
  auto ids = ParseIds(*list, fields->PathOf(name));
  if (!ids.ok()) return fields->FailWith(ids.status());
  *out = *std::move(ids);
}

void ParseSeed(JsonFields* fields, std::optional<uint64_t>* seed) {
  const Json* value = fields->Get("seed");
  if (value == nullptr) return;
  if (value->is_number_unsigned()) {
    *seed = value->get<uint64_t>();
  } else if (const auto whole = WholeNumber(*value); whole.has_value()) {
    *seed = static_cast<uint64_t>(*whole);  // -1 is as good a seed as any
  } else {
    fields->Fail("seed", "a whole number from -2^63 to 2^64-1");
  }
}

void ParseStop(JsonFields* fields, std::vector<std::string>* stop) {
  const Json* value = fields->Get("stop");
  if (value == nullptr) return;
  if (value->is_string()) {
    *stop = {value->get<std::string>()};
  } else if (value->is_array()) {
    for (const Json& entry : *value) {
      if (!entry.is_string()) return fields->Fail("stop", "a text or a list of texts");
      stop->push_back(entry.get<std::string>());
    }
  } else {
    return fields->Fail("stop", "a text or a list of texts");
  }
  const auto matcher = model::StopMatcher::Create(*stop, /*include_stop=*/false);
  if (!matcher.ok()) fields->FailWith(FieldError("stop", matcher.status().message()));
}

void ParseLogitBias(JsonFields* fields, std::vector<std::pair<int32_t, float>>* bias) {
  const Json* value = fields->Get("logit_bias");
  if (value == nullptr) return;
  if (!value->is_object() || value->size() > kLogitBiasMax) {
    return fields->Fail("logit_bias", absl::StrCat("an object of at most ", kLogitBiasMax,
                                                   " entries from token id to bias"));
  }
  for (const auto& [key, entry] : value->items()) {
    int32_t id = 0;
    const double amount = entry.is_number() ? entry.get<double>() : 1000;
    if (!absl::SimpleAtoi(key, &id) || id < 0 || !(amount >= -100 && amount <= 100)) {
      return fields->FailWith(FieldError(
          "logit_bias",
          absl::StrCat("logit_bias has ", JsonForMessage(Json(key)), ": ", JsonForMessage(entry),
                       ", wanted a token id and a number from -100 to 100")));
    }
    bias->emplace_back(id, static_cast<float>(amount));
  }
}

void ParseSampling(JsonFields* fields, SamplingOptions* out) {
  fields->Float("temperature", 0, 100, &out->temperature);
  fields->Float("top_p", 0, 1, &out->top_p, /*above_low=*/true);
  fields->Float("min_p", 0, 1, &out->min_p);
  fields->Float("repetition_penalty", 0, 100, &out->repetition_penalty, /*above_low=*/true);
  fields->Float("presence_penalty", -2, 2, &out->presence_penalty);
  fields->Float("frequency_penalty", -2, 2, &out->frequency_penalty);
  fields->Int("top_k", -1, kIdMax, &out->top_k);
  if (out->top_k == -1) out->top_k = 0;
  ParseSeed(fields, &out->seed);
  ParseLogitBias(fields, &out->logit_bias);
  fields->Int("min_tokens", 0, kTokensMax, &out->min_tokens);
  ParseIdList("stop_token_ids", fields, &out->stop_token_ids);
  fields->Bool("ignore_eos", &out->ignore_eos);
}

void ParseStreamOptions(JsonFields* fields, ApiRequest* out, std::vector<std::string>* ignored) {
  fields->Bool("stream", &out->stream);
  const Json* options = fields->Get("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) {
    return fields->Fail("stream_options", R"(an object such as {"include_usage": true})");
  }
  if (!out->stream && fields->status().ok()) {
    return fields->FailWith(
        FieldError("stream_options", "stream_options needs stream to be true; leave it out"));
  }
  JsonFields inner(*options, "stream_options.");
  inner.Bool("include_usage", &out->include_usage);
  inner.Bool("continuous_usage_stats", &out->continuous_usage);
  inner.Neutral("include_obfuscation", {false});
  fields->FailWith(inner.status());
  for (std::string& name : inner.Ignored()) ignored->push_back(std::move(name));
}

// Header "X-Request-Id" counts when neither is given.
void ParseRequestId(JsonFields* fields, std::string* id) {
  fields->Text("request_id", kRequestIdBytesMax, id);
  if (id->empty()) {
    fields->Text("rid", kRequestIdBytesMax, id);
  } else {
    fields->Skip("rid");
  }
}

// What this server cannot do yet must not be asked for.
void RefuseUnsupported(JsonFields* fields) {
  const Json none = Json::array();
  const Json text_format = {{"type", "text"}};
  fields->Neutral("tools", {none});
  fields->Neutral("tool_choice", {"none", "auto"});
  fields->Neutral("functions", {none});
  fields->Neutral("function_call", {"none", "auto"});
  fields->Neutral("response_format", {text_format});
  fields->Neutral("prompt_logprobs", {});
  fields->Neutral("allowed_token_ids", {});
  fields->Neutral("bad_words", {none});
  fields->Neutral("logits_processors", {none});
  fields->Neutral("use_beam_search", {false});
  fields->Neutral("best_of", {1});
  fields->Neutral("suffix", {""});
  for (const char* name :
       {"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
        "regex", "ebnf", "json_schema", "kv_transfer_params", "bootstrap_host", "bootstrap_port",
        "bootstrap_room", "routed_dp_rank", "data_parallel_rank", "input_ids", "chat_template"}) {
    fields->Neutral(name, {});
  }
  fields->Neutral("documents", {none});
  fields->Neutral("add_generation_prompt", {true});
  fields->Neutral("continue_final_message", {false});
  for (const char* name : {"user", "parallel_tool_calls"}) fields->Skip(name);
}

void ParseCommon(JsonFields* fields, ApiRequest* out, std::vector<std::string>* ignored) {
  fields->Text("model", 1024, &out->model);
  ParseSampling(fields, &out->sampling);
  fields->Int("n", 1, kChoicesMax, &out->n);
  ParseStop(fields, &out->stop);
  fields->Bool("include_stop_str_in_output", &out->include_stop);
  fields->Bool("no_stop_trim", &out->include_stop);
  fields->Bool("skip_special_tokens", &out->skip_special_tokens);
  fields->Skip("spaces_between_special_tokens");  // these tokenizers put none
  ParseStreamOptions(fields, out, ignored);
  fields->Bool("return_token_ids", &out->return_token_ids);
  fields->Bool("return_tokens_as_token_ids", &out->tokens_as_ids);
  fields->Int("truncate_prompt_tokens", -1, kTokensMax, &out->truncate_prompt_tokens);
  if (out->truncate_prompt_tokens == 0) {
    fields->Fail("truncate_prompt_tokens", "-1 (what fits) or a whole number of at least 1");
  }
  fields->Int("priority", 0, kTokensMax, &out->priority);
  fields->Text("cache_salt", kCacheSaltBytesMax, &out->cache_salt);
  ParseRequestId(fields, &out->request_id);
  RefuseUnsupported(fields);
}

// `field` absent or null counts as no value.
void ParseMaxTokens(JsonFields* fields, const char* field, std::optional<uint32_t>* out) {
  fields->Int(field, 1, kTokensMax, out);
}

// Last, when max_tokens is known.
void CheckMinTokens(const SamplingOptions& sampling, JsonFields* fields) {
  const std::optional<uint32_t> max =
      sampling.max_tokens.has_value() ? sampling.max_tokens : sampling.max_tokens_default;
  if (max.has_value() && sampling.min_tokens > *max) {
    fields->Fail("min_tokens", absl::StrCat("at most max_tokens (", *max, ")"));
  }
}

void ParseThinking(JsonFields* fields, bool* thinking, std::vector<std::string>* ignored) {
  const Json* kwargs = fields->Get("chat_template_kwargs");
  if (kwargs != nullptr && !kwargs->is_object()) {
    fields->Fail("chat_template_kwargs", R"(an object such as {"thinking": true})");
  } else if (kwargs != nullptr) {
    JsonFields inner(*kwargs, "chat_template_kwargs.");
    inner.Bool("thinking", thinking);
    inner.Bool("enable_thinking", thinking);
    fields->FailWith(inner.status());
    for (std::string& name : inner.Ignored()) ignored->push_back(std::move(name));
  }
  fields->Neutral("reasoning_effort", {"medium"});
  const Json* reasoning = fields->Get("reasoning");
  if (reasoning != nullptr && !reasoning->is_object()) {
    fields->Fail("reasoning", R"(an object such as {"enabled": true})");
  } else if (reasoning != nullptr) {
    JsonFields inner(*reasoning, "reasoning.");
    inner.Bool("enabled", thinking);
    inner.Neutral("effort", {"medium"});
    fields->FailWith(inner.status());
    for (std::string& name : inner.Ignored()) ignored->push_back(std::move(name));
  }
}

void ParseChatLogprobs(JsonFields* fields, int32_t* num_logprobs) {
  bool logprobs = false;
  fields->Bool("logprobs", &logprobs);
  int32_t top = 0;
  fields->Int("top_logprobs", 0, kTopLogprobsMax, &top);
  if (top > 0 && !logprobs) {
    fields->FailWith(FieldError("top_logprobs", absl::StrCat("top_logprobs is ", top,
                                                             ", which needs logprobs to be true")));
  }
  if (logprobs) *num_logprobs = top;
}

bool IsIdList(const Json& value) {
  return value.is_array() && !value.empty() && value.front().is_number();
}

void AppendPrompt(const Json& value, const std::string& field, JsonFields* fields,
                  std::vector<PromptInput>* prompts) {
  if (value.is_string()) {
    prompts->emplace_back(value.get<std::string>());
    return;
  }
  if (!IsIdList(value)) {
    return fields->FailWith(FieldError(
        field, absl::StrCat(field, " is ", JsonForMessage(value),
                            ", wanted a text or a list of token ids that is not empty")));
  }
  auto ids = ParseIds(value, field);
  if (!ids.ok()) return fields->FailWith(ids.status());
  prompts->emplace_back(*std::move(ids));
}

void ParsePrompts(JsonFields* fields, std::vector<PromptInput>* prompts) {
  const Json* value = fields->Get("prompt");
  if (value == nullptr) return fields->Fail("prompt", "a text or a list of token ids");
  if (!value->is_array() || IsIdList(*value))
    return AppendPrompt(*value, "prompt", fields, prompts);
  if (value->empty() || value->size() > kChoicesMax) {
    return fields->Fail("prompt", absl::StrCat("a text, a list of token ids, or a list of 1 to ",
                                               kChoicesMax, " of either"));
  }
  for (size_t i = 0; i < value->size(); ++i) {
    AppendPrompt((*value)[i], absl::StrCat("prompt[", i, "]"), fields, prompts);
  }
}

std::vector<std::string> AllIgnored(const JsonFields& fields, std::vector<std::string> nested) {
  std::vector<std::string> all = fields.Ignored();
  for (std::string& name : nested) all.push_back(std::move(name));
  return all;
}

}  // namespace

absl::StatusOr<ParsedRequest> ParseChatRequest(absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const Json json, ParseBody(body));
  ParsedRequest parsed;
  ApiRequest& request = parsed.request;
  request.chat = true;
  std::vector<std::string> nested;
  JsonFields fields(json, "");
  if (const Json* messages = fields.Get("messages"); messages == nullptr) {
    fields.Fail("messages", "a list of at least one message");
  } else {
    fields.FailWith(ParseMessages(*messages, &request.messages, &nested));
  }
  ParseCommon(&fields, &request, &nested);
  ParseMaxTokens(&fields, "max_tokens", &request.sampling.max_tokens);
  ParseMaxTokens(&fields, "max_completion_tokens", &request.sampling.max_tokens);
  CheckMinTokens(request.sampling, &fields);
  ParseChatLogprobs(&fields, &request.sampling.num_logprobs);
  ParseThinking(&fields, &request.thinking, &nested);
  fields.Bool("include_reasoning", &request.include_reasoning);
  fields.Bool("separate_reasoning", &request.separate_reasoning);
  fields.Bool("stream_reasoning", &request.stream_reasoning);
  fields.Neutral("echo", {false});
  fields.Neutral("add_special_tokens", {false});  // the template writes them
  SLUICE_RETURN_IF_ERROR(fields.status());
  parsed.ignored = AllIgnored(fields, std::move(nested));
  return parsed;
}

absl::StatusOr<ParsedRequest> ParseCompletionRequest(absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const Json json, ParseBody(body));
  ParsedRequest parsed;
  ApiRequest& request = parsed.request;
  std::vector<std::string> nested;
  JsonFields fields(json, "");
  ParsePrompts(&fields, &request.prompts);
  ParseCommon(&fields, &request, &nested);
  request.sampling.max_tokens_default = 16;  // OpenAI's
  ParseMaxTokens(&fields, "max_tokens", &request.sampling.max_tokens);
  CheckMinTokens(request.sampling, &fields);
  fields.Int("logprobs", 0, kTopLogprobsMax, &request.sampling.num_logprobs);
  fields.Bool("echo", &request.echo);
  fields.Bool("add_special_tokens", &request.add_special_tokens);
  SLUICE_RETURN_IF_ERROR(fields.status());
  SLUICE_RETURN_IF_ERROR(CheckTogether(request, ""));
  parsed.ignored = AllIgnored(fields, std::move(nested));
  return parsed;
}

absl::StatusOr<TokenizeBody> ParseTokenizeRequest(absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const Json json, ParseBody(body));
  TokenizeBody parsed;
  std::vector<std::string> nested;
  JsonFields fields(json, "");
  fields.Text("model", 1024, &parsed.model);
  fields.Bool("return_token_strs", &parsed.return_token_strs);
  fields.Bool("add_special_tokens", &parsed.add_special_tokens);
  if (const Json* messages = fields.Get("messages"); messages != nullptr) {
    parsed.chat = true;
    fields.FailWith(ParseMessages(*messages, &parsed.messages, &nested));
    ParseThinking(&fields, &parsed.thinking, &nested);
    fields.Neutral("add_generation_prompt", {true});
    fields.Neutral("continue_final_message", {false});
    fields.Neutral("chat_template", {});
  } else if (fields.Get("prompt") == nullptr) {
    fields.Fail("prompt", "a text, or messages instead");
  } else {
    fields.Text("prompt", kTextMax, &parsed.prompt);
  }
  SLUICE_RETURN_IF_ERROR(fields.status());
  return parsed;
}

absl::StatusOr<DetokenizeBody> ParseDetokenizeRequest(absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const Json json, ParseBody(body));
  DetokenizeBody parsed;
  JsonFields fields(json, "");
  fields.Text("model", 1024, &parsed.model);
  const Json* tokens = fields.Get("tokens");
  if (tokens == nullptr || !tokens->is_array()) {
    fields.Fail("tokens", "a list of token ids");
    return fields.status();
  }
  SLUICE_RETURN_IF_ERROR(fields.status());
  SLUICE_ASSIGN_OR_RETURN(parsed.tokens, ParseIds(*tokens, "tokens"));
  return parsed;
}

}  // namespace sluice::router
