// One client's call: all answers to all of its prompts, from the core's tokens to deltas.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/model/tokenizer.h"
#include "services/router/openai_response.h"
#include "services/router/preparation.h"
#include "services/router/reply_stream.h"
#include "services/router/token_backend.h"

namespace sluice::router {

// Whoever sends the answers on. The call must not be destroyed from within.
class CallListener {
 public:
  virtual ~CallListener() = default;
  virtual void OnDelta(const ChoiceDelta& delta) = 0;
  // All answers have ended. No call follows.
  virtual void OnDone(const Timings& timings) = 0;
  // The whole call failed, whatever has come before. No call follows.
  virtual void OnError(const absl::Status& status) = 0;
};

// Threads: the loop's.
class GenerationCall {
 public:
  // Submits every answer to the backend. An error, the backend's or a field's, means that nothing
  // runs. What is passed in outlives the call. The listener is not called before this returns.
  static absl::StatusOr<std::unique_ptr<GenerationCall>> Start(PreparedRequest prepared,
                                                               const model::Tokenizer& tokenizer,
                                                               TokenBackend* backend,
                                                               CallListener* listener,
                                                               absl::Time deadline);
  // Cancels what still runs.
  ~GenerationCall();
  GenerationCall(const GenerationCall&) = delete;
  GenerationCall& operator=(const GenerationCall&) = delete;

  const PreparedRequest& prepared() const { return prepared_; }
  ApiUsage usage() const;  // so far

 private:
  class Choice;

  GenerationCall(PreparedRequest prepared, TokenBackend* backend, CallListener* listener);
  absl::Status SubmitAll(const model::Tokenizer& tokenizer, absl::Time deadline);
  void CancelAll();

  PreparedRequest prepared_;
  TokenBackend* const backend_;
  CallListener* const listener_;
  std::vector<std::unique_ptr<Choice>> choices_;
  size_t num_running_ = 0;
  Timings timings_;  // of the first answer
};

}  // namespace sluice::router
