#include "services/router/openai_logprobs.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "services/model/utf8.h"
#include "services/router/json_writer.h"

namespace sluice::router {
namespace {

std::string TokenText(int32_t id, const model::Tokenizer& tokenizer, bool as_ids) {
  return as_ids ? absl::StrCat("token_id:", id)
                : model::ReplaceInvalidUtf8(tokenizer.TokenBytes(id));
}

void AppendBytes(absl::string_view bytes, std::string* out) {
  out->append("\"bytes\":[");
  for (size_t i = 0; i < bytes.size(); ++i) {
    absl::StrAppend(out, i == 0 ? "" : ",", static_cast<int>(static_cast<uint8_t>(bytes[i])));
  }
  out->push_back(']');
}

void AppendChatToken(int32_t id, float logprob, const model::Tokenizer& tokenizer, bool as_ids,
                     std::string* out) {
  out->append("{\"token\":");
  AppendJsonString(TokenText(id, tokenizer, as_ids), out);
  out->append(",\"logprob\":");
  AppendLogprob(logprob, out);
  out->push_back(',');
  AppendBytes(tokenizer.TokenBytes(id), out);
}

size_t CountChars(absl::string_view utf8) {
  return static_cast<size_t>(std::count_if(
      utf8.begin(), utf8.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

void AppendTopMap(const TokenLogprob& entry, const model::Tokenizer& tokenizer, bool as_ids,
                  std::string* out) {
  out->push_back('{');
  absl::flat_hash_set<std::string> written;
  const auto append = [&](int32_t id, float logprob) {
    std::string text = TokenText(id, tokenizer, as_ids);
    if (written.contains(text)) return;
    if (!written.empty()) out->push_back(',');
    AppendJsonString(text, out);
    out->push_back(':');
    AppendLogprob(logprob, out);
    written.insert(std::move(text));
  };
  for (const auto& [id, logprob] : entry.top) append(id, logprob);
  append(entry.id, entry.logprob);  // the sampled token too, though it be none of the best
  out->push_back('}');
}

}  // namespace

void AppendChatLogprobs(absl::Span<const TokenLogprob> logprobs, const model::Tokenizer& tokenizer,
                        bool as_ids, std::string* out) {
  out->append("{\"content\":[");
  for (size_t i = 0; i < logprobs.size(); ++i) {
    if (i > 0) out->push_back(',');
    AppendChatToken(logprobs[i].id, logprobs[i].logprob, tokenizer, as_ids, out);
    out->append(",\"top_logprobs\":[");
    for (size_t k = 0; k < logprobs[i].top.size(); ++k) {
      if (k > 0) out->push_back(',');
      AppendChatToken(logprobs[i].top[k].first, logprobs[i].top[k].second, tokenizer, as_ids, out);
      out->push_back('}');
    }
    out->append("]}");
  }
  out->append("],\"refusal\":null}");
}

void AppendCompletionLogprobs(absl::Span<const TokenLogprob> logprobs,
                              const model::Tokenizer& tokenizer, bool as_ids, size_t* text_offset,
                              std::string* out) {
  std::string values, tops, offsets;
  out->append("{\"tokens\":[");
  for (size_t i = 0; i < logprobs.size(); ++i) {
    const TokenLogprob& entry = logprobs[i];
    if (i > 0) {
      for (std::string* list : {out, &values, &tops, &offsets}) list->push_back(',');
    }
    AppendJsonString(TokenText(entry.id, tokenizer, as_ids), out);
    AppendLogprob(entry.logprob, &values);
    AppendTopMap(entry, tokenizer, as_ids, &tops);
    absl::StrAppend(&offsets, *text_offset);
    *text_offset += CountChars(model::ReplaceInvalidUtf8(tokenizer.TokenBytes(entry.id)));
  }
  absl::StrAppend(out, "],\"token_logprobs\":[", values, "],\"top_logprobs\":[", tops,
                  "],\"text_offset\":[", offsets, "]}");
}

}  // namespace sluice::router
