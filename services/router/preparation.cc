#include "services/router/preparation.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/model/page_hash.h"
#include "services/router/api_error.h"

namespace sluice::router {
namespace {

struct Encoded {
  std::vector<int32_t> ids;
  bool in_thinking = false;
  bool has_bos = false;  // ours, to be kept when the beginning is cut
};

absl::Status CheckIds(absl::Span<const int32_t> ids, const std::string& field,
                      const ServedModel& model) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < model.config.vocab_size) continue;
    return FieldError(
        field, absl::StrCat(field, " holds token id ", ids[i],
                            "; the model's vocabulary has ids 0 to ", model.config.vocab_size - 1));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Encoded>> EncodeAll(const ServedModel& model, ApiRequest* request) {
  std::vector<Encoded> all;
  if (request->chat) {
    SLUICE_ASSIGN_OR_RETURN(model::EncodedPrompt encoded,
                            EncodeChat(model, request->messages, request->thinking));
    all.push_back({.ids = std::move(encoded.ids), .in_thinking = encoded.in_thinking});
  }
  for (PromptInput& prompt : request->prompts) {
    Encoded encoded;
    if (auto* ids = std::get_if<std::vector<int32_t>>(&prompt); ids != nullptr) {
      SLUICE_RETURN_IF_ERROR(CheckIds(*ids, "prompt", model));
      encoded.ids = std::move(*ids);
    } else {
      SLUICE_ASSIGN_OR_RETURN(encoded.ids, EncodeText(model, std::get<std::string>(prompt),
                                                      request->add_special_tokens));
    }
    if (encoded.ids.empty()) {
      return FieldError("prompt", "prompt is empty, wanted at least one token");
    }
    all.push_back(std::move(encoded));
  }
  for (Encoded& encoded : all) {
    encoded.has_bos =
        model.tokenizer->bos_id() >= 0 && encoded.ids.front() == model.tokenizer->bos_id();
  }
  return all;
}

// Drops tokens from the left until `keep` are left; a first BOS stays.
void CutLeft(int64_t keep, Encoded* encoded) {
  const int64_t size = static_cast<int64_t>(encoded->ids.size());
  if (size <= keep) return;
  const int64_t first = encoded->has_bos && keep > 1 ? 1 : 0;
  const auto begin = encoded->ids.begin();
  encoded->ids.erase(begin + first, begin + first + (size - keep));
}

// Cuts the prompt where that is asked for; says what does not fit. Then there is room for an
// answer.
absl::Status FitPrompt(const ServedModel& model, const ApiRequest& request, Encoded* encoded) {
  const char* field = request.chat ? "messages" : "prompt";
  const int64_t wanted = request.sampling.max_tokens.value_or(0);
  if (wanted >= model.context_tokens) {
    return ContextLengthError("max_tokens", static_cast<int64_t>(encoded->ids.size()), wanted,
                              model.context_tokens);
  }
  const std::optional<int64_t> asked = request.truncate_prompt_tokens;
  if (asked.has_value() || model.truncate_prompts) {
    int64_t keep =
        std::min(model.prompt_tokens_max, model.context_tokens - std::max<int64_t>(wanted, 1));
    if (asked.value_or(-1) > 0) keep = std::min(keep, *asked);
    CutLeft(keep, encoded);
  }
  const int64_t size = static_cast<int64_t>(encoded->ids.size());
  if (size > model.prompt_tokens_max) {
    return ContextLengthError(field, size, 0, model.prompt_tokens_max + 1);
  }
  if (size + wanted > model.context_tokens) {
    return ContextLengthError(field, size, wanted, model.context_tokens);
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Sampling> MakeSampling(const ServedModel& model, const ApiRequest& request,
                                          int64_t longest_prompt, uint64_t random_seed) {
  const SamplingOptions& options = request.sampling;
  const SamplingDefaults& defaults = model.defaults;
  v1::Sampling sampling;
  sampling.set_temperature(options.temperature.value_or(defaults.temperature));
  sampling.set_top_p(options.top_p.value_or(defaults.top_p));
  sampling.set_top_k(options.top_k.value_or(defaults.top_k));
  sampling.set_min_p(options.min_p.value_or(defaults.min_p));
  sampling.set_repetition_penalty(options.repetition_penalty.value_or(defaults.repetition_penalty));
  sampling.set_presence_penalty(options.presence_penalty.value_or(0));
  sampling.set_frequency_penalty(options.frequency_penalty.value_or(0));
  sampling.set_seed(options.seed.value_or(random_seed));
  for (const auto& [id, bias] : options.logit_bias) {
    SLUICE_RETURN_IF_ERROR(CheckIds({id}, "logit_bias", model));
    (*sampling.mutable_logit_bias())[static_cast<uint32_t>(id)] = bias;
  }
  const int64_t room = model.context_tokens - longest_prompt;
  const int64_t max_tokens = options.max_tokens.value_or(
      std::min<int64_t>(room, options.max_tokens_default.value_or(room)));
  sampling.set_max_tokens(static_cast<uint32_t>(max_tokens));
  if (options.min_tokens > max_tokens) {
    return FieldError("min_tokens",
                      absl::StrCat("min_tokens is ", options.min_tokens, ", and there is room for ",
                                   max_tokens, " tokens of answer"));
  }
  sampling.set_min_tokens(options.min_tokens);
  SLUICE_RETURN_IF_ERROR(CheckIds(options.stop_token_ids, "stop_token_ids", model));
  std::vector<int32_t> stops = options.stop_token_ids;
  if (!options.ignore_eos) {
    for (const int32_t id : model.config.eos_token_ids) {
      if (std::find(stops.begin(), stops.end(), id) == stops.end()) stops.push_back(id);
    }
  }
  if (stops.size() > kStopTokensMax) {
    return FieldError(
        "stop_token_ids",
        absl::StrCat("stop_token_ids has ", options.stop_token_ids.size(), " ids, ", stops.size(),
                     " with the model's end tokens; at most ", kStopTokensMax,
                     " are allowed, or as many without them if ignore_eos is true"));
  }
  sampling.mutable_stop_token_ids()->Add(stops.begin(), stops.end());
  sampling.set_num_logprobs(options.num_logprobs);
  return sampling;
}

model::PageHash ToPageHash(absl::string_view bytes) {
  model::PageHash hash{};
  std::copy_n(bytes.begin(), std::min(bytes.size(), hash.size()), hash.begin());
  return hash;
}

std::string ToBytes(absl::Span<const model::PageHash> hashes) {
  std::string bytes;
  bytes.reserve(hashes.size() * sizeof(model::PageHash));
  for (const model::PageHash& hash : hashes) bytes.append(hash.begin(), hash.end());
  return bytes;
}

// Prefixes are shared within a tenant, and there under one salt only.
std::string CacheSalt(absl::string_view tenant, absl::string_view salt) {
  if (tenant.empty() && salt.empty()) return "";
  return absl::StrCat(tenant, absl::string_view("\0", 1), salt);
}

std::shared_ptr<const Prompt> MakePrompt(const ServedModel& model,
                                         const PreparationContext& context,
                                         absl::string_view cache_salt,
                                         const std::vector<int32_t>& ids) {
  auto prompt = std::make_shared<Prompt>();
  prompt->ids.assign(ids.begin(), ids.end());
  if (context.kv_layout_hash.size() == sizeof(model::PageHash)) {
    model::PageHasher hasher;
    const model::PageHash root = hasher.Root(model.hash, ToPageHash(context.kv_layout_hash),
                                             CacheSalt(context.tenant, cache_salt));
    std::vector<model::PageHash> hashes;
    hasher.Extend(root, ids, &hashes);
    prompt->page_hash_seed = ToBytes({root});
    prompt->page_hashes = ToBytes(hashes);
  }
  return prompt;
}

}  // namespace

absl::Status CheckModelName(const ServedModel& model, absl::string_view name) {
  return name.empty() || name == model.name ? absl::OkStatus() : UnknownModelError(name);
}

absl::StatusOr<model::EncodedPrompt> EncodeChat(const ServedModel& model,
                                                const std::vector<model::ChatMessage>& messages,
                                                bool thinking) {
  if (!model.chat_template.has_value()) {
    return FieldError(
        "messages",
        absl::StrCat(model.why_no_chats, "; `chat_template: NAME` in the ",
                     "cluster file's model section sets one. Completions work without"));
  }
  auto encoded = model.chat_template->Encode(*model.tokenizer, messages, {.thinking = thinking});
  if (absl::IsInvalidArgument(encoded.status())) {
    return FieldError("messages", encoded.status().message());
  }
  return encoded;
}

absl::StatusOr<std::vector<int32_t>> EncodeText(const ServedModel& model, absl::string_view text,
                                                bool add_special_tokens) {
  return model.tokenizer->Encode(
      text, {.added_tokens = model::AddedTokenMode::kAll,
             .add_bos = add_special_tokens && model.tokenizer->add_bos_token()});
}

absl::StatusOr<std::vector<int32_t>> Tokenize(const ServedModel& model,
                                              const TokenizeBody& request) {
  SLUICE_RETURN_IF_ERROR(CheckModelName(model, request.model));
  if (request.chat) {
    SLUICE_ASSIGN_OR_RETURN(model::EncodedPrompt encoded,
                            EncodeChat(model, request.messages, request.thinking));
    return std::move(encoded.ids);
  }
  if (request.plain) {
    return model.tokenizer->Encode(request.prompt,
                                   {.added_tokens = model::AddedTokenMode::kPlainText});
  }
  return EncodeText(model, request.prompt, request.add_special_tokens);
}

absl::StatusOr<PreparedRequest> Prepare(const ServedModel& model, ApiRequest request,
                                        const PreparationContext& context) {
  SLUICE_RETURN_IF_ERROR(CheckModelName(model, request.model));
  PreparedRequest prepared;
  SLUICE_ASSIGN_OR_RETURN(std::vector<Encoded> all, EncodeAll(model, &request));
  int64_t longest = 0;
  for (Encoded& encoded : all) {
    SLUICE_RETURN_IF_ERROR(FitPrompt(model, request, &encoded));
    longest = std::max(longest, static_cast<int64_t>(encoded.ids.size()));
  }
  SLUICE_ASSIGN_OR_RETURN(prepared.sampling,
                          MakeSampling(model, request, longest, context.random_seed));
  for (Encoded& encoded : all) {
    prepared.prompts.push_back(
        {.prompt = MakePrompt(model, context, request.cache_salt, encoded.ids),
         .in_thinking = encoded.in_thinking});
    if (!request.echo && !request.return_token_ids) continue;
    PromptEcho echo;
    if (request.echo) {
      echo.text =
          model.tokenizer->Decode(encoded.ids, /*skip_special=*/request.skip_special_tokens);
    }
    if (request.return_token_ids) echo.token_ids = std::move(encoded.ids);
    prepared.echoes.push_back(std::move(echo));
  }
  request.messages.clear();
  request.prompts.clear();
  prepared.request = std::move(request);
  return prepared;
}

}  // namespace sluice::router
