#include "services/model/reply.h"

#include "kernels/base/status.h"

namespace sluice::model {

absl::StatusOr<Reply> Reply::Create(const Tokenizer* tokenizer, const ReplyOptions& options) {
  SLUICE_ASSIGN_OR_RETURN(StopMatcher matcher,
                          StopMatcher::Create(options.stops, options.include_stop));
  Reply reply(std::move(matcher));
  if (tokenizer == nullptr) {
    if (options.stops.empty()) return reply;
    return absl::FailedPreconditionError("stop strings need a tokenizer, and the model has none");
  }
  reply.detokenizer_.emplace(*tokenizer, options.skip_special);
  if (options.split_reasoning) reply.splitter_.emplace(*tokenizer, options.in_thinking);
  return reply;
}

ReplyDelta Reply::Feed(int32_t id) {
  if (!detokenizer_.has_value() || stopped()) return {};
  const std::string text = detokenizer_->Feed(id);
  if (!splitter_.has_value()) return {{}, CutContent(text)};
  const auto delta = splitter_->Feed(id, text);
  return {delta.reasoning, CutContent(delta.content)};
}

ReplyDelta Reply::Finish() {
  if (!detokenizer_.has_value() || stopped()) return {};
  const std::string text = detokenizer_->Flush();
  ReplyDelta last{{}, text};
  if (splitter_.has_value()) {
    const auto delta = splitter_->Flush(text);
    last = {delta.reasoning, delta.content};
  }
  last.content = CutContent(last.content);
  if (!stopped()) last.content += stops_.Flush();
  return last;
}

std::string Reply::CutContent(const std::string& content) {
  const auto result = stops_.Feed(content);
  stop_ = result.stop;
  return result.text;
}

}  // namespace sluice::model
