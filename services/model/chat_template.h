// Chat messages to prompt ids, as the DeepSeek family's chat templates lay them out.
//
// The templates are rendered natively, not by a Jinja interpreter: which one a checkpoint has is
// recognised by its features. Control tokens and contents are tokenized apart, so that nothing
// written in a message can become a control token.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/model/tokenizer.h"

namespace sluice::model {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

struct ChatOptions {
  // Whether the model is to reason before it answers. Only deepseek-v3.1 has the choice; the others
  // always or never do.
  bool thinking = false;
};

struct PromptSegment {
  std::string text;
  bool is_control = false;  // control tokens; else contents, and literal text joined to them

  friend bool operator==(const PromptSegment&, const PromptSegment&) = default;
};

struct RenderedPrompt {
  std::vector<PromptSegment> segments;
  bool in_thinking = false;  // the reply starts inside the reasoning (after <think>)
};

struct EncodedPrompt {
  std::vector<int32_t> ids;
  bool in_thinking = false;
};

// One layout. Those with marks are
//   {bos}{systems}, per turn <｜User｜>{content} or <｜Assistant｜>{opening}{content}{end of
//   sentence}, and at the end <｜Assistant｜>{opening}
// with their own openings. The one that is plain text has every message where it stands:
//   {bos}, per message {system}⏎⏎ or User: {content}⏎⏎ or Assistant: {content}{eos}, and at the
//   end Assistant:
struct ChatLayout {
  enum class CutThinking { kNever, kThroughFirst, kThroughLast };

  std::string name;
  bool is_plain_text = false;  // then nothing below counts
  bool join_systems = true;    // system messages joined by a blank line; else the last one counts
  CutThinking cut_thinking = CutThinking::kNever;  // up to which </think> earlier replies are cut
  bool mark_every_reply = true;  // else <｜Assistant｜> stands only where a user's turn came before
  std::string turn_opening;      // of earlier replies
  std::string opening;           // of the reply to come
  std::string thinking_opening;  // the same with ChatOptions::thinking
};

class ChatTemplate {
 public:
  // The names that Create() takes: deepseek-v2, deepseek-v3, deepseek-r1, deepseek-r1-0528,
  // deepseek-v3.1.
  static std::vector<std::string> Names();

  // Recognises the Jinja source of `tokenizer.chat_template()`, or takes the template called
  // `name` if that is not empty.
  // Errors: InvalidArgument if the name or the template is unknown (listing the names), or if a
  // control token that the template needs is not in the tokenizer.
  static absl::StatusOr<ChatTemplate> Create(const Tokenizer& tokenizer, absl::string_view name);

  // Errors: InvalidArgument naming the message ("messages[2].role") if there are no messages, a
  // role is unknown, no message is from the user, or the last one that is not a system message is
  // not from the user.
  absl::StatusOr<RenderedPrompt> Render(const std::vector<ChatMessage>& messages,
                                        const ChatOptions& options) const;

  // Render(), then control segments with AddedTokenMode::kAll and contents with kPlainText.
  absl::StatusOr<EncodedPrompt> Encode(const Tokenizer& tokenizer,
                                       const std::vector<ChatMessage>& messages,
                                       const ChatOptions& options) const;

  const std::string& name() const { return layout_.name; }

 private:
  ChatTemplate(ChatLayout layout, std::string bos, std::string eos)
      : layout_(std::move(layout)), bos_(std::move(bos)), eos_(std::move(eos)) {}

  RenderedPrompt RenderMarked(const std::vector<ChatMessage>& messages, bool thinking) const;
  RenderedPrompt RenderPlainText(const std::vector<ChatMessage>& messages) const;

  ChatLayout layout_;
  std::string bos_;  // the tokens' texts
  std::string eos_;
};

}  // namespace sluice::model
