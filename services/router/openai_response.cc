#include "services/router/openai_response.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/model/utf8.h"
#include "services/router/json_writer.h"
#include "services/router/openai_logprobs.h"

namespace sluice::router {
namespace {

void AppendTextField(const char* name, absl::string_view text, std::string* out) {
  absl::StrAppend(out, "\"", name, "\":");
  AppendJsonString(text, out);
}

void AppendIds(const char* name, absl::Span<const int32_t> ids, std::string* out) {
  absl::StrAppend(out, ",\"", name, "\":[");
  for (size_t i = 0; i < ids.size(); ++i) absl::StrAppend(out, i == 0 ? "" : ",", ids[i]);
  out->push_back(']');
}

// "id":...,"object":...,"created":...,"model":...,"system_fingerprint":...,
std::string Opening(const ResponseHead& head, const char* object) {
  std::string out = "{";
  AppendTextField("id", head.id, &out);
  absl::StrAppend(&out, ",\"object\":\"", object, "\",\"created\":", head.created, ",");
  AppendTextField("model", head.model, &out);
  out.push_back(',');
  AppendTextField("system_fingerprint", head.fingerprint, &out);
  out.push_back(',');
  return out;
}

void AppendUsage(const ApiUsage& usage, std::string* out) {
  const uint32_t cached = std::min(usage.cached_tokens, usage.prompt_tokens);
  absl::StrAppend(out, "\"usage\":{\"prompt_tokens\":", usage.prompt_tokens,
                  ",\"completion_tokens\":", usage.completion_tokens,
                  ",\"total_tokens\":", uint64_t{usage.prompt_tokens} + usage.completion_tokens,
                  ",\"prompt_tokens_details\":{\"cached_tokens\":", cached,
                  "},\"completion_tokens_details\":{\"reasoning_tokens\":", usage.reasoning_tokens,
                  "},\"prompt_cache_hit_tokens\":", cached,
                  ",\"prompt_cache_miss_tokens\":", usage.prompt_tokens - cached, "}");
}

// finish_reason, and what stopped it under the names that vLLM and SGLang give it.
void AppendEnd(const std::optional<ChoiceEnd>& end, std::string* out) {
  if (!end.has_value()) {
    out->append(R"("finish_reason":null)");
    return;
  }
  std::string reason = "null";
  if (const auto* text = std::get_if<std::string>(&end->stop_reason)) {
    reason.clear();
    AppendJsonString(*text, &reason);
  } else if (const auto* id = std::get_if<int32_t>(&end->stop_reason)) {
    reason = absl::StrCat(*id);
  }
  absl::StrAppend(out, "\"finish_reason\":\"", end->length ? "length" : "stop",
                  "\",\"stop_reason\":", reason, ",\"matched_stop\":", reason);
}

void AppendReasoning(absl::string_view text, std::string* out) {
  AppendTextField("reasoning_content", text, out);
  out->push_back(',');
  AppendTextField("reasoning", text, out);
}

void AppendChatMessage(const ChoiceDelta& choice, std::string* out) {
  out->append(R"("message":{"role":"assistant","content":)");
  AppendJsonString(choice.content, out);
  out->append(",\"refusal\":null,");
  if (choice.reasoning.empty()) {
    out->append(R"("reasoning_content":null,"reasoning":null)");
  } else {
    AppendReasoning(choice.reasoning, out);
  }
  out->push_back('}');
}

}  // namespace

ChunkWriter::ChunkWriter(ResponseHead head)
    : head_(std::move(head)),
      prefix_(absl::StrCat(
          "data: ", Opening(head_, head_.chat ? "chat.completion.chunk" : "text_completion"),
          "\"choices\":[")) {}

size_t& ChunkWriter::TextOffset(uint32_t index) {
  if (index >= text_offsets_.size()) text_offsets_.resize(index + 1, 0);
  return text_offsets_[index];
}

void ChunkWriter::Open(uint32_t index, std::string* out) const {
  absl::StrAppend(out, prefix_, "{\"index\":", index, ",");
}

void ChunkWriter::Begin(uint32_t index, const PromptEcho* echo, std::string* out) {
  const bool ids = echo != nullptr && head_.token_ids;
  const bool text = echo != nullptr && !echo->text.empty();
  if (!head_.chat && !ids && !text) return;
  Open(index, out);
  if (head_.chat) {
    out->append(R"("delta":{"role":"assistant","content":""},)");
  } else {
    AppendTextField("text", text ? echo->text : "", out);
    out->push_back(',');
  }
  out->append("\"logprobs\":null,\"finish_reason\":null");
  if (ids) AppendIds("prompt_token_ids", echo->token_ids, out);
  out->append("}]}\n\n");
}

void ChunkWriter::Delta(const ChoiceDelta& delta, const ApiUsage* usage, std::string* out) {
  Open(delta.index, out);
  if (head_.chat) {
    out->append("\"delta\":{");
    if (!delta.reasoning.empty()) AppendReasoning(delta.reasoning, out);
    if (!delta.content.empty()) {
      if (!delta.reasoning.empty()) out->push_back(',');
      AppendTextField("content", delta.content, out);
    }
    out->push_back('}');
  } else {
    AppendTextField("text", delta.content, out);
  }
  out->append(",\"logprobs\":");
  if (!head_.logprobs || delta.logprobs.empty()) {
    out->append("null");
  } else if (head_.chat) {
    AppendChatLogprobs(delta.logprobs, *head_.tokenizer, head_.tokens_as_ids, out);
  } else {
    AppendCompletionLogprobs(delta.logprobs, *head_.tokenizer, head_.tokens_as_ids,
                             &TextOffset(delta.index), out);
  }
  out->push_back(',');
  AppendEnd(delta.end, out);
  if (head_.token_ids) AppendIds("token_ids", delta.token_ids, out);
  out->append("}]");
  if (usage != nullptr) {
    out->push_back(',');
    AppendUsage(*usage, out);
  }
  out->append("}\n\n");
}

void ChunkWriter::Usage(const ApiUsage& usage, std::string* out) {
  absl::StrAppend(out, prefix_, "],");
  AppendUsage(usage, out);
  out->append("}\n\n");
}

void ChunkWriter::Error(absl::string_view error_json, std::string* out) {
  absl::StrAppend(out, "data: ", error_json, "\n\n");
}

void ChunkWriter::Done(std::string* out) { out->append("data: [DONE]\n\n"); }

std::string ResponseJson(const ResponseHead& head, absl::Span<const ChoiceDelta> choices,
                         absl::Span<const PromptEcho> echoes, uint32_t n, const ApiUsage& usage) {
  std::string out = Opening(head, head.chat ? "chat.completion" : "text_completion");
  out += "\"choices\":[";
  for (const ChoiceDelta& choice : choices) {
    const size_t prompt = choice.index / n;
    const PromptEcho* echo = prompt < echoes.size() ? &echoes[prompt] : nullptr;
    absl::StrAppend(&out, choice.index == 0 ? "" : ",", "{\"index\":", choice.index, ",");
    if (head.chat) {
      AppendChatMessage(choice, &out);
    } else {
      AppendTextField("text", absl::StrCat(echo == nullptr ? "" : echo->text, choice.content),
                      &out);
    }
    out += ",\"logprobs\":";
    size_t text_offset = 0;
    if (!head.logprobs) {
      out += "null";
    } else if (head.chat) {
      AppendChatLogprobs(choice.logprobs, *head.tokenizer, head.tokens_as_ids, &out);
    } else {
      AppendCompletionLogprobs(choice.logprobs, *head.tokenizer, head.tokens_as_ids, &text_offset,
                               &out);
    }
    out.push_back(',');
    AppendEnd(choice.end, &out);
    if (head.token_ids) {
      if (echo != nullptr) AppendIds("prompt_token_ids", echo->token_ids, &out);
      AppendIds("token_ids", choice.token_ids, &out);
    }
    out.push_back('}');
  }
  out += "],";
  AppendUsage(usage, &out);
  out += "}";
  return out;
}

std::string ModelJson(const ModelCard& card) {
  std::string out = "{";
  AppendTextField("id", card.id, &out);
  absl::StrAppend(&out, ",\"object\":\"model\",\"created\":", card.created,
                  ",\"owned_by\":\"sluice\",");
  AppendTextField("root", card.root, &out);
  absl::StrAppend(&out, ",\"parent\":null,\"max_model_len\":", card.max_model_len,
                  ",\"permission\":[]}");
  return out;
}

std::string ModelListJson(const ModelCard& card) {
  return absl::StrCat("{\"object\":\"list\",\"data\":[", ModelJson(card), "]}");
}

std::string TokenizeJson(absl::Span<const int32_t> ids, int64_t max_model_len,
                         const model::Tokenizer* token_strs) {
  std::string out = absl::StrCat("{\"count\":", ids.size(), ",\"max_model_len\":", max_model_len);
  AppendIds("tokens", ids, &out);
  out += ",\"token_strs\":";
  if (token_strs == nullptr) {
    out += "null";
  } else {
    out.push_back('[');
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i > 0) out.push_back(',');
      AppendJsonString(token_strs->TokenBytes(ids[i]), &out);
    }
    out.push_back(']');
  }
  out += "}";
  return out;
}

std::string DetokenizeJson(absl::string_view text) {
  std::string out = "{";
  AppendTextField("prompt", text, &out);
  out += "}";
  return out;
}

}  // namespace sluice::router
