// A reply on its way from token ids to text: detokenized, cut at stop strings, reasoning told
// apart.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/model/detokenizer.h"
#include "services/model/reasoning_splitter.h"
#include "services/model/stop_matcher.h"
#include "services/model/tokenizer.h"

namespace sluice::cli {

// Internal: what to tell about a request that ended with FinishReason::kDamaged.
absl::Status DamagedLogits(const std::string& model_dir);

struct ReplyDelta {
  std::string reasoning;
  std::string content;
};

class Reply {
 public:
  // `tokenizer` may be null: then there is no text, and stop strings are an error. Without
  // `split_reasoning` everything is content.
  static absl::StatusOr<Reply> Create(const model::Tokenizer* tokenizer, bool in_thinking,
                                      bool split_reasoning, const std::vector<std::string>& stops);

  ReplyDelta Feed(int32_t id);
  ReplyDelta Finish();
  // A stop string has been found; nothing comes after it.
  bool stopped() const { return stopped_; }

 private:
  explicit Reply(model::StopMatcher content_stops) : stops_(std::move(content_stops)) {}
  // Stop strings are looked for in the content, not in the reasoning.
  std::string CutContent(const std::string& content);

  std::optional<model::Detokenizer> detokenizer_;
  std::optional<model::ReasoningSplitter> splitter_;
  model::StopMatcher stops_;
  bool stopped_ = false;
};

}  // namespace sluice::cli
