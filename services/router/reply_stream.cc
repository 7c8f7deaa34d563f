#include "services/router/reply_stream.h"

#include <algorithm>
#include <iterator>

#include "kernels/base/status.h"

namespace sluice::router {
namespace {

TokenLogprob FromProto(int32_t id, const v1::TokenLogprobs& logprobs) {
  TokenLogprob entry{.id = id, .logprob = logprobs.logprob()};
  const int count = std::min(logprobs.top_ids_size(), logprobs.top_logprobs_size());
  for (int i = 0; i < count; ++i) {
    entry.top.emplace_back(static_cast<int32_t>(logprobs.top_ids(i)), logprobs.top_logprobs(i));
  }
  return entry;
}

}  // namespace

void MergeDelta(ChoiceDelta piece, ChoiceDelta* whole) {
  whole->index = piece.index;
  whole->reasoning += piece.reasoning;
  whole->content += piece.content;
  whole->token_ids.insert(whole->token_ids.end(), piece.token_ids.begin(), piece.token_ids.end());
  std::move(piece.logprobs.begin(), piece.logprobs.end(), std::back_inserter(whole->logprobs));
  if (piece.end.has_value()) whole->end = std::move(piece.end);
}

absl::StatusOr<ReplyStream> ReplyStream::Create(const model::Tokenizer& tokenizer,
                                                const ApiRequest& request, bool in_thinking,
                                                uint32_t index) {
  SLUICE_ASSIGN_OR_RETURN(
      model::Reply reply,
      model::Reply::Create(&tokenizer,
                           {.in_thinking = in_thinking,
                            .split_reasoning = request.chat && request.separate_reasoning,
                            .skip_special = request.skip_special_tokens,
                            .stops = request.stop,
                            .include_stop = request.include_stop}));
  return ReplyStream(std::move(reply), request, index);
}

ReplyStream::ReplyStream(model::Reply reply, const ApiRequest& request, uint32_t index)
    : reply_(std::move(reply)), request_(&request) {
  next_.index = index;
}

std::optional<ChoiceDelta> ReplyStream::Feed(const Output& output) {
  for (size_t i = 0; i < output.token_ids.size() && !ended_; ++i) {
    const int32_t id = static_cast<int32_t>(output.token_ids[i]);
    const bool last = i + 1 == output.token_ids.size();
    next_.token_ids.push_back(id);
    if (output.logprobs != nullptr) {
      next_.logprobs.push_back(
          FromProto(id, output.logprobs->Get(output.logprobs_offset + static_cast<int>(i))));
    }
    FeedToken(id, last && output.finish == v1::FINISH_STOP);
  }
  if (!ended_ && output.finish != v1::FINISH_UNSPECIFIED) {
    End(/*length=*/output.finish == v1::FINISH_LENGTH, {});
  }
  const bool wants_tokens = request_->return_token_ids || request_->sampling.num_logprobs >= 0;
  const bool worth_it =
      next_.end.has_value() || next_.has_text() || (wants_tokens && !next_.token_ids.empty());
  if (!worth_it) return std::nullopt;
  ChoiceDelta piece = std::move(next_);
  next_ = ChoiceDelta{.index = piece.index};
  return piece;
}

void ReplyStream::FeedToken(int32_t id, bool is_stop_token) {
  ++num_tokens_;
  if (reply_.in_thinking()) ++num_reasoning_tokens_;
  // A stop token is text only when asked for.
  if (!is_stop_token || request_->include_stop) Append(reply_.Feed(id));
  if (is_stop_token) {
    const auto& own = request_->sampling.stop_token_ids;
    const bool asked_for = std::find(own.begin(), own.end(), id) != own.end();
    End(/*length=*/false, asked_for ? StopReason(id) : StopReason());
  } else if (reply_.stopped()) {
    End(/*length=*/false, request_->stop[*reply_.stop()]);
  }
}

void ReplyStream::Append(model::ReplyDelta delta) {
  if (request_->include_reasoning) {
    (request_->stream_reasoning ? next_.reasoning : held_reasoning_) += delta.reasoning;
  }
  next_.content += delta.content;
  if (!held_reasoning_.empty() && !reply_.in_thinking()) {
    next_.reasoning += held_reasoning_;
    held_reasoning_.clear();
  }
}

void ReplyStream::End(bool length, StopReason stop_reason) {
  ended_ = true;
  Append(reply_.Finish());
  next_.reasoning += held_reasoning_;
  held_reasoning_.clear();
  // The last characters may have completed a stop string.
  if (std::holds_alternative<std::monostate>(stop_reason) && reply_.stopped()) {
    stop_reason = request_->stop[*reply_.stop()];
    length = false;
  }
  next_.end = ChoiceEnd{.length = length, .stop_reason = std::move(stop_reason)};
}

}  // namespace sluice::router
