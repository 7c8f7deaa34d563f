// What a client wants of the core, and what it gets: token ids, no text.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "sluice/v1/control.pb.h"

namespace sluice::router {

using RequestId = uint64_t;  // unique among a router's requests, never used twice

// Shared by the n answers to one prompt.
struct Prompt {
  std::vector<uint32_t> ids;  // at least one
  // 16 bytes for each full page of 64 tokens, a chain that starts from the seed: see
  // services/model/page_hash.h. Both empty: nothing is shared with other requests.
  std::string page_hashes;
  std::string page_hash_seed;
};

struct GenerationRequest {
  std::string name;  // the request id of logs and of the client
  std::shared_ptr<const Prompt> prompt;
  // All fields hold what is to be done. max_tokens above what the largest instances can hold beside
  // the prompt is cut to it: the answer then ends with "length".
  sluice::v1::Sampling sampling;
  uint32_t priority = 0;  // class: 0 is served first
  absl::Time deadline = absl::InfiniteFuture();
};

struct Usage {
  uint32_t prompt_tokens = 0;
  uint32_t output_tokens = 0;
  uint32_t cached_tokens = 0;  // prompt tokens that did not have to be computed
};

struct Timings {
  absl::Duration queue;        // in the router, and on the worker until the first chunk
  absl::Duration prefill;      // from the first chunk to the first token
  absl::Duration transfer;     // of KV, from the first write to the last; zero on mixed instances
  absl::Duration first_token;  // since Submit
  absl::Duration total;        // since Submit
};

// Newly sampled tokens of a request, in order, each token once.
struct Output {
  absl::Span<const uint32_t> token_ids;  // at least one
  // One per token when the request asked for logprobs, else null.
  const google::protobuf::RepeatedPtrField<sluice::v1::TokenLogprobs>* logprobs = nullptr;
  int logprobs_offset = 0;  // logprobs->Get(logprobs_offset + i) belongs to token_ids[i]
  // STOP or LENGTH with the last tokens: no call follows. Usage and timings are complete then, and
  // hold what is known so far before.
  sluice::v1::Finish finish = sluice::v1::FINISH_UNSPECIFIED;
  Usage usage;
  Timings timings;
};

// Where a request's output goes. Calls come on the core's thread, never before Submit returned.
// What they are given lives until they return. They may call Submit and Cancel of the core, for any
// request.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  virtual void OnOutput(const Output& output) = 0;
  // The request ends without an answer; no call follows. Unavailable (RetryAfter may say when to
  // come again), ResourceExhausted, DeadlineExceeded, InvalidArgument, Internal.
  virtual void OnError(const absl::Status& status) = 0;
};

}  // namespace sluice::router
