#include "services/model/reasoning_splitter.h"

#include <utility>

#include "absl/strings/strip.h"

namespace sluice::model {
namespace {

constexpr absl::string_view kThink = "<think>";
constexpr absl::string_view kEndThink = "</think>";

}  // namespace

ReasoningSplitter::ReasoningSplitter(const Tokenizer& tokenizer, bool in_thinking)
    : think_id_(tokenizer.AddedTokenId(kThink).value_or(-1)),
      end_think_id_(tokenizer.AddedTokenId(kEndThink).value_or(-1)),
      state_(end_think_id_ < 0 ? State::kContent
             : in_thinking     ? State::kReasoning
                               : State::kStart),
      drops_newlines_(state_ == State::kReasoning) {}

ReasoningSplitter::Delta ReasoningSplitter::Feed(int32_t id, absl::string_view text) {
  if (state_ == State::kStart) {
    if (id == think_id_) {
      state_ = State::kReasoning;
      drops_newlines_ = true;
      return Emit(absl::StripSuffix(text, kThink));
    }
    state_ = State::kContent;
  }
  if (state_ == State::kReasoning && id == end_think_id_) {
    // The text may begin with the rest of a broken character, held back until now.
    Delta delta = Emit(absl::StripSuffix(text, kEndThink));
    held_newlines_.clear();
    state_ = State::kContent;
    drops_newlines_ = true;
    return delta;
  }
  return Emit(text);
}

ReasoningSplitter::Delta ReasoningSplitter::Flush(absl::string_view text) {
  Delta delta = Emit(text);
  delta.reasoning += std::exchange(held_newlines_, {});
  return delta;
}

ReasoningSplitter::Delta ReasoningSplitter::Emit(absl::string_view text) {
  Delta delta;
  if (drops_newlines_) {
    while (absl::ConsumePrefix(&text, "\n")) {
    }
    drops_newlines_ = text.empty();
  }
  if (state_ != State::kReasoning) {
    delta.content = std::string(text);
    return delta;
  }
  const size_t last = text.find_last_not_of('\n');
  const size_t safe_bytes = last == absl::string_view::npos ? 0 : last + 1;
  if (safe_bytes > 0) {
    delta.reasoning = std::exchange(held_newlines_, {});
    delta.reasoning.append(text.data(), safe_bytes);
  }
  held_newlines_.append(text.data() + safe_bytes, text.size() - safe_bytes);
  return delta;
}

}  // namespace sluice::model
