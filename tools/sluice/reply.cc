#include "tools/sluice/reply.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice::cli {

absl::Status DamagedLogits(const std::string& model_dir) {
  return absl::InternalError(absl::StrCat(
      "the model's logits are not finite, so it has no answer; its weights may be damaged: see ",
      "`sluice inspect --check-data ", model_dir, "`"));
}

absl::StatusOr<Reply> Reply::Create(const model::Tokenizer* tokenizer, bool in_thinking,
                                    bool split_reasoning, const std::vector<std::string>& stops) {
  SLUICE_ASSIGN_OR_RETURN(model::StopMatcher matcher,
                          model::StopMatcher::Create(stops, /*include_stop=*/false));
  Reply reply(std::move(matcher));
  if (tokenizer == nullptr) {
    if (stops.empty()) return reply;
    return absl::FailedPreconditionError("stop strings need a tokenizer, and the model has none");
  }
  reply.detokenizer_.emplace(*tokenizer, /*skip_special=*/true);
  if (split_reasoning) reply.splitter_.emplace(*tokenizer, in_thinking);
  return reply;
}

ReplyDelta Reply::Feed(int32_t id) {
  if (!detokenizer_.has_value() || stopped_) return {};
  const std::string text = detokenizer_->Feed(id);
  if (!splitter_.has_value()) return {{}, CutContent(text)};
  const auto delta = splitter_->Feed(id, text);
  return {delta.reasoning, CutContent(delta.content)};
}

ReplyDelta Reply::Finish() {
  if (!detokenizer_.has_value() || stopped_) return {};
  const std::string text = detokenizer_->Flush();
  ReplyDelta last{{}, text};
  if (splitter_.has_value()) {
    const auto delta = splitter_->Flush(text);
    last = {delta.reasoning, delta.content};
  }
  last.content = CutContent(last.content);
  if (!stopped_) last.content += stops_.Flush();
  return last;
}

std::string Reply::CutContent(const std::string& content) {
  const auto result = stops_.Feed(content);
  stopped_ = result.stop.has_value();
  return result.text;
}

}  // namespace sluice::cli
