// Whether a streamed chat answer is what the mock worker gave: every letter, in order, once; then
// the finish reason, the usage and [DONE].
#pragma once

#include <simdjson.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace sluice::bench {

class ChatCheck {
 public:
  ChatCheck(uint64_t seed, uint32_t tokens) : seed_(seed), tokens_(tokens) {}

  // The data of one event. DataLoss for what is wrong, with what was wanted.
  absl::Status OnEvent(absl::string_view data, simdjson::dom::parser* parser);
  // After the response's end.
  absl::Status Complete() const;

  uint32_t received() const { return received_; }
  int64_t prompt_tokens() const { return prompt_tokens_; }

 private:
  absl::Status OnText(absl::string_view text);
  absl::Status OnUsage(const simdjson::dom::element& usage);

  const uint64_t seed_;
  const uint32_t tokens_;
  uint32_t received_ = 0;
  int64_t prompt_tokens_ = 0;
  bool finished_ = false;  // "finish_reason":"length"
  bool usage_ = false;
  bool done_ = false;  // [DONE]
};

}  // namespace sluice::bench
