// A reply on its way from token ids to text: detokenized, cut at stop strings, reasoning told
// apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "services/model/detokenizer.h"
#include "services/model/reasoning_splitter.h"
#include "services/model/stop_matcher.h"
#include "services/model/tokenizer.h"

namespace sluice::model {

struct ReplyOptions {
  bool in_thinking = false;      // as RenderedPrompt::in_thinking
  bool split_reasoning = false;  // else everything is content
  bool skip_special = true;      // special tokens give no text
  std::vector<std::string> stops;
  bool include_stop = false;  // the stop string is part of the content
};

struct ReplyDelta {
  std::string reasoning;
  std::string content;
};

// Threads: one at a time. The tokenizer must outlive it.
class Reply {
 public:
  // `tokenizer` may be null: then there is no text, and stop strings are an error (so are those
  // that StopMatcher refuses).
  static absl::StatusOr<Reply> Create(const Tokenizer* tokenizer, const ReplyOptions& options);

  ReplyDelta Feed(int32_t id);
  // What was held back. Nothing follows.
  ReplyDelta Finish();
  // The index of the stop string that has been found; nothing comes after it. Stop strings are
  // looked for in the content, not in the reasoning.
  std::optional<size_t> stop() const { return stop_; }
  bool stopped() const { return stop_.has_value(); }
  // The next token is taken for reasoning.
  bool in_thinking() const { return splitter_.has_value() && splitter_->in_thinking(); }

 private:
  explicit Reply(StopMatcher content_stops) : stops_(std::move(content_stops)) {}
  std::string CutContent(const std::string& content);

  std::optional<Detokenizer> detokenizer_;
  std::optional<ReasoningSplitter> splitter_;
  StopMatcher stops_;
  std::optional<size_t> stop_;
};

}  // namespace sluice::model
