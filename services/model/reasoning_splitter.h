// Tells a reply's reasoning from its answer while it streams.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "services/model/tokenizer.h"

namespace sluice::model {

// Feed each token's id with the text that the detokenizer gave for it. Text before the token
// </think> is reasoning, what follows is content; a reply that does not start inside the reasoning
// enters it if its very first token is <think>. The two tokens themselves are in neither, nor are
// the newlines around them. The letters "</think>" written as ordinary tokens change nothing.
//
// Threads: one at a time.
class ReasoningSplitter {
 public:
  // in_thinking: as RenderedPrompt::in_thinking. A tokenizer without these tokens: all is content.
  ReasoningSplitter(const Tokenizer& tokenizer, bool in_thinking);

  struct Delta {
    std::string reasoning;
    std::string content;
  };
  Delta Feed(int32_t id, absl::string_view text);

  // The text that came without a token: what Detokenizer::Flush() gave.
  Delta Flush(absl::string_view text);

  bool in_thinking() const { return state_ == State::kReasoning; }

 private:
  enum class State { kStart, kReasoning, kContent };

  Delta Emit(absl::string_view text);

  int32_t think_id_;      // -1: none
  int32_t end_think_id_;  // -1: none
  State state_;
  bool drops_newlines_;        // until something else comes
  std::string held_newlines_;  // of the reasoning; dropped if </think> follows
};

}  // namespace sluice::model
