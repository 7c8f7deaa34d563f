// A live request: what is asked, its token log, and the attempt that is under way.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/router/admission.h"
#include "services/router/generation.h"
#include "services/router/worker.h"

namespace sluice::router {

struct Attempt {
  uint32_t number = 0;
  // Who has a part in it; 0: not any more. Equal: a mixed instance does both.
  WorkerId prefill = 0;
  WorkerId decode = 0;
  bool mixed = false;
  bool leased = false;       // the lease was handed to the prefill
  bool first_token = false;  // this attempt's first token is in
  bool kv_ready = false;     // the decode has all KV, verified
  Share prefill_share;       // what counts for either worker; on a mixed one only the prefill's
  Share decode_share;
};

struct Request {
  RequestId id = 0;
  GenerationRequest spec;
  GenerationSink* sink = nullptr;
  absl::Time submitted;

  std::vector<uint32_t> output;  // every token sent to the client
  std::optional<Attempt> attempt;
  uint32_t attempts = 0;  // begun so far: the number of the newest
  int failed = 0;
  int handbacks = 0;
  int refusals = 0;
  std::vector<WorkerId> failed_on;

  absl::Time queued_at;  // since when it has no place
  // Since when nobody is here who could take it: it is not in the queue then.
  std::optional<absl::Time> parked_at;
  absl::Time timer;  // when it is to be looked at again
  absl::Time last_output;
  Usage usage;
  Timings timings;

  int64_t known_tokens() const {
    return static_cast<int64_t>(spec.prompt->ids.size() + output.size());
  }
  Waiting waiting() const {
    return {.id = id,
            .priority = spec.priority,
            .tokens = static_cast<int64_t>(spec.prompt->ids.size()),
            .arrival = submitted};
  }
};

// Which of the tokens that a worker reports are new: tokens.subspan(result). The log knows those
// before; they are only compared. Internal for a gap, a contradiction, or more than max_tokens.
absl::StatusOr<size_t> CheckAgainstLog(absl::Span<const uint32_t> log, uint32_t first_output,
                                       absl::Span<const uint32_t> tokens, uint32_t max_tokens);

}  // namespace sluice::router
