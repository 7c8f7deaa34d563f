#include "services/model/chat_template.h"

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "services/model/utf8.h"

namespace sluice::model {
namespace {

constexpr absl::string_view kUser = "<｜User｜>";
constexpr absl::string_view kAssistant = "<｜Assistant｜>";
constexpr absl::string_view kEndOfSentence = "<｜end▁of▁sentence｜>";
constexpr absl::string_view kThink = "<think>";
constexpr absl::string_view kEndThink = "</think>";

std::vector<ChatLayout> AllLayouts() {
  using Cut = ChatLayout::CutThinking;
  return {
      // Answers at once; roles are words, not tokens.
      {.name = "deepseek-v2", .is_plain_text = true},
      // Answers at once.
      {.name = "deepseek-v3"},
      // The prompt opens the reasoning.
      {.name = "deepseek-r1",
       .cut_thinking = Cut::kThroughLast,
       .opening = "<think>\n",
       .thinking_opening = "<think>\n"},
      // The model opens the reasoning itself.
      {.name = "deepseek-r1-0528", .cut_thinking = Cut::kThroughLast},
      // The prompt opens the reasoning, or closes it at once.
      {.name = "deepseek-v3.1",
       .cut_thinking = Cut::kThroughFirst,
       .mark_every_reply = false,
       .turn_opening = "</think>",
       .opening = "</think>",
       .thinking_opening = "<think>"},
  };
}

std::optional<ChatLayout> LayoutByName(absl::string_view name) {
  for (ChatLayout& layout : AllLayouts()) {
    if (layout.name == name) return std::move(layout);
  }
  return std::nullopt;
}

// Whether a Jinja source is DeepSeek-V2's (and DeepSeek-LLM's): each message is one literal with
// the content in it, and nothing else is looked at.
bool IsPlainText(absl::string_view source) {
  // Blanks count here: they are in the literals.
  const std::string jinja = absl::StrReplaceAll(
      source, {{"\"", "'"}, {"\\n", "\n"}, {" + ", "+"}, {"{{ ", "{{"}, {"{{- ", "{{"}});
  const auto has = [&](absl::string_view text) { return absl::StrContains(jinja, text); };
  for (const absl::string_view foreign : {"<", "think", "tool", "namespace", "System", "strip"}) {
    if (has(foreign)) return false;
  }
  return has("{{bos_token") && has("{{'User: '+message['content']+'\n\n'") &&
         has("{{'Assistant: '+message['content']+eos_token") &&
         has("{{message['content']+'\n\n'") && has("{{'Assistant:'");
}

// The name of the layout that a Jinja source describes, by what the DeepSeek templates differ in.
// Empty: unknown.
absl::string_view NameBySource(absl::string_view source) {
  if (IsPlainText(source)) return "deepseek-v2";
  // Quotes and blanks are a matter of taste.
  const std::string jinja = absl::StrReplaceAll(source, {{"\"", "'"}, {" ", ""}});
  const auto has = [&](absl::string_view text) { return absl::StrContains(jinja, text); };
  if (!has(kUser) || !has(kAssistant) || !has(kEndOfSentence)) return "";
  const bool has_switch = has("thinkingisdefined") && has("notthinking");
  const bool cuts_first = has(".split('</think>',1)[1]");
  const bool cuts_last = has(".split('</think>')[-1]");
  const bool opens = has("<｜Assistant｜><think>\\n'") || has("<｜Assistant｜><think>\n'");
  if (has_switch) return cuts_first && has("'<think>'") && has("'</think>'") ? "deepseek-v3.1" : "";
  if (has("thinking")) return "";
  if (cuts_last && opens) return "deepseek-r1";
  if (cuts_last && !has(kThink)) return "deepseek-r1-0528";
  return has("think>") ? "" : "deepseek-v3";
}

absl::StatusOr<ChatLayout> Recognise(absl::string_view source) {
  std::optional<ChatLayout> layout = LayoutByName(NameBySource(source));
  if (!layout) {
    return absl::InvalidArgumentError(absl::StrCat(
        source.empty() ? "the model has no chat template" : "the model's chat template is unknown",
        "; there are ", absl::StrJoin(ChatTemplate::Names(), ", ")));
  }
  layout->join_systems = absl::StrContains(source, "is_first_sp");
  return *std::move(layout);
}

absl::Status CheckTokens(const Tokenizer& tokenizer, const ChatLayout& layout) {
  std::vector<absl::string_view> needed;
  if (!layout.is_plain_text) needed = {kUser, kAssistant, kEndOfSentence};
  const std::string openings =
      absl::StrCat(layout.turn_opening, layout.opening, layout.thinking_opening);
  if (absl::StrContains(openings, kThink)) needed.push_back(kThink);
  if (absl::StrContains(openings, kEndThink)) needed.push_back(kEndThink);
  for (const absl::string_view token : needed) {
    if (!tokenizer.AddedTokenId(token)) {
      return absl::InvalidArgumentError(absl::StrCat("chat template ", layout.name,
                                                     " needs the token ", token,
                                                     ", which the tokenizer does not have"));
    }
  }
  const auto missing = [&](const char* key) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template ", layout.name, " needs ", key, " in tokenizer_config.json"));
  };
  if (tokenizer.bos_id() < 0) return missing("a bos_token");
  if (layout.is_plain_text && tokenizer.eos_id() < 0) return missing("an eos_token");
  return absl::OkStatus();
}

absl::Status CheckMessages(const std::vector<ChatMessage>& messages) {
  if (messages.empty()) return absl::InvalidArgumentError("messages: is empty");
  std::optional<size_t> last;  // that is not a system message
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role == "user" || role == "assistant") {
      last = i;
    } else if (role != "system") {
      return absl::InvalidArgumentError(
          absl::StrCat("messages[", i, "].role: \"", Shorten(role),
                       "\" is not supported (only system, user and assistant)"));
    }
  }
  if (!last) return absl::InvalidArgumentError("messages: no message is from the user");
  if (messages[*last].role != "user") {
    return absl::InvalidArgumentError(absl::StrCat(
        "messages[", *last, "].role: the last message must be the user's, not the assistant's"));
  }
  return absl::OkStatus();
}

std::string SystemPrompt(const std::vector<ChatMessage>& messages, bool join) {
  std::string text;
  bool is_first = true;
  for (const ChatMessage& message : messages) {
    if (message.role != "system") continue;
    if (!join) {
      text = message.content;
    } else {
      absl::StrAppend(&text, is_first ? "" : "\n\n", message.content);
    }
    is_first = false;
  }
  return text;
}

absl::string_view WithoutThinking(absl::string_view content, ChatLayout::CutThinking cut) {
  if (cut == ChatLayout::CutThinking::kNever) return content;
  const size_t at = cut == ChatLayout::CutThinking::kThroughFirst ? content.find(kEndThink)
                                                                  : content.rfind(kEndThink);
  return at == absl::string_view::npos ? content : content.substr(at + kEndThink.size());
}

// Joins neighbours of the same kind: contents that no control token separates are tokenized in one.
void Append(absl::string_view text, bool is_control, std::vector<PromptSegment>* segments) {
  if (text.empty()) return;
  if (segments->empty() || segments->back().is_control != is_control) {
    segments->push_back({.text = {}, .is_control = is_control});
  }
  segments->back().text.append(text.data(), text.size());
}

}  // namespace

std::vector<std::string> ChatTemplate::Names() {
  std::vector<std::string> names;
  for (const ChatLayout& layout : AllLayouts()) names.push_back(layout.name);
  return names;
}

absl::StatusOr<ChatTemplate> ChatTemplate::Create(const Tokenizer& tokenizer,
                                                  absl::string_view name) {
  absl::StatusOr<ChatLayout> layout;
  if (name.empty()) {
    layout = Recognise(tokenizer.chat_template());
    if (!layout.ok()) return layout.status();
  } else if (std::optional<ChatLayout> named = LayoutByName(name)) {
    layout = *std::move(named);
  } else {
    return absl::InvalidArgumentError(absl::StrCat("chat template \"", Shorten(name),
                                                   "\" is none of ", absl::StrJoin(Names(), ", ")));
  }
  const absl::Status status = CheckTokens(tokenizer, *layout);
  if (!status.ok()) return status;
  return ChatTemplate(*std::move(layout), std::string(tokenizer.TokenBytes(tokenizer.bos_id())),
                      std::string(tokenizer.TokenBytes(tokenizer.eos_id())));
}

absl::StatusOr<RenderedPrompt> ChatTemplate::Render(const std::vector<ChatMessage>& messages,
                                                    const ChatOptions& options) const {
  const absl::Status status = CheckMessages(messages);
  if (!status.ok()) return status;
  return layout_.is_plain_text ? RenderPlainText(messages)
                               : RenderMarked(messages, options.thinking);
}

// Words of the template are tokenized in one with the contents beside them, as Hugging Face does:
// apart, "User: hi" would be other ids.
RenderedPrompt ChatTemplate::RenderPlainText(const std::vector<ChatMessage>& messages) const {
  RenderedPrompt prompt;
  const auto control = [&](absl::string_view text) { Append(text, true, &prompt.segments); };
  const auto text = [&](absl::string_view part) { Append(part, false, &prompt.segments); };
  control(bos_);
  for (const ChatMessage& message : messages) {
    if (message.role == "assistant") {
      text("Assistant: ");
      text(message.content);
      control(eos_);
    } else {
      if (message.role == "user") text("User: ");
      text(message.content);
      text("\n\n");
    }
  }
  text("Assistant:");
  return prompt;
}

RenderedPrompt ChatTemplate::RenderMarked(const std::vector<ChatMessage>& messages,
                                          bool thinking) const {
  RenderedPrompt prompt;
  const auto control = [&](absl::string_view text) { Append(text, true, &prompt.segments); };
  const auto content = [&](absl::string_view text) { Append(text, false, &prompt.segments); };
  control(bos_);
  content(SystemPrompt(messages, layout_.join_systems));
  bool after_user = false;
  for (const ChatMessage& message : messages) {
    if (message.role == "user") {
      control(kUser);
      content(message.content);
      after_user = true;
    } else if (message.role == "assistant") {
      if (after_user || layout_.mark_every_reply) {
        control(kAssistant);
        control(layout_.turn_opening);
      }
      content(WithoutThinking(message.content, layout_.cut_thinking));
      control(kEndOfSentence);
      after_user = false;
    }
  }
  const std::string& opening = thinking ? layout_.thinking_opening : layout_.opening;
  control(kAssistant);
  control(opening);
  prompt.in_thinking = absl::StartsWith(opening, kThink);
  return prompt;
}

absl::StatusOr<EncodedPrompt> ChatTemplate::Encode(const Tokenizer& tokenizer,
                                                   const std::vector<ChatMessage>& messages,
                                                   const ChatOptions& options) const {
  const absl::StatusOr<RenderedPrompt> rendered = Render(messages, options);
  if (!rendered.ok()) return rendered.status();
  EncodedPrompt prompt{.ids = {}, .in_thinking = rendered->in_thinking};
  for (const PromptSegment& segment : rendered->segments) {
    const absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(
        segment.text,
        {.added_tokens = segment.is_control ? AddedTokenMode::kAll : AddedTokenMode::kPlainText});
    if (!ids.ok()) return ids.status();
    prompt.ids.insert(prompt.ids.end(), ids->begin(), ids->end());
  }
  return prompt;
}

}  // namespace sluice::model
