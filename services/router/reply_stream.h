// One answer on its way from the core's tokens to what clients are sent, whichever API they use.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "services/model/reply.h"
#include "services/model/tokenizer.h"
#include "services/router/api_request.h"
#include "services/router/generation.h"

namespace sluice::router {

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // the most probable first
};

// What ended an answer. Of a stop by the model's own end token nothing is told.
using StopReason = std::variant<std::monostate, std::string, int32_t>;

struct ChoiceEnd {
  bool length = false;  // max_tokens or the context limit; else a stop
  StopReason stop_reason;
};

// A piece of one answer, or a whole one.
struct ChoiceDelta {
  uint32_t index = 0;
  std::string reasoning;
  std::string content;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;  // one per token id, when asked for
  std::optional<ChoiceEnd> end;

  bool has_text() const { return !reasoning.empty() || !content.empty(); }
};

// Appends a piece to what came before it of the same answer.
void MergeDelta(ChoiceDelta piece, ChoiceDelta* whole);

// Threads: one at a time. The tokenizer and the request must outlive it.
class ReplyStream {
 public:
  // Errors: InvalidArgument for stop strings that cannot be.
  static absl::StatusOr<ReplyStream> Create(const model::Tokenizer& tokenizer,
                                            const ApiRequest& request, bool in_thinking,
                                            uint32_t index);

  // The next piece; nothing while there is no text to show for the tokens so far and they were not
  // asked for themselves: then they come with a later piece. After the piece with `end` is set,
  // further output is dropped.
  std::optional<ChoiceDelta> Feed(const Output& output);

  bool ended() const { return ended_; }
  uint32_t num_tokens() const { return num_tokens_; }  // up to the one that ended the answer
  uint32_t num_reasoning_tokens() const { return num_reasoning_tokens_; }

 private:
  ReplyStream(model::Reply reply, const ApiRequest& request, uint32_t index);

  void FeedToken(int32_t id, bool is_stop_token);
  void Append(model::ReplyDelta delta);
  void End(bool length, StopReason stop_reason);

  model::Reply reply_;
  const ApiRequest* request_;
  bool ended_ = false;
  uint32_t num_tokens_ = 0;
  uint32_t num_reasoning_tokens_ = 0;
  std::string held_reasoning_;  // where it is to come in one piece
  ChoiceDelta next_;
};

}  // namespace sluice::router
