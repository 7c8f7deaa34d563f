// Where a request runs best: on which prefill and decode that fit together, or on which mixed
// instance. A pure function from what is known of the instances to a choice.
//
// A choice costs, in estimated seconds:
//   prefill  (tokens waiting there + tokens of this request that it has not cached) / its tokens
//   per second decode   tokens of KV that it has not cached / kTransferTokensPerSecond
//            + kCrowdedSeconds x (share of its slots taken + share of its pages taken, this request
//            included)
//   mixed    both, without the transfer
// Both sides of a pair count apart, so that the cheapest prefill and the cheapest decode of a KV
// layout are its cheapest pair, and a decision takes time in proportion to the instances.
// A decode or mixed instance that is busy with steps longer than the request's class wants is taken
// only if there is no other.
// An instance that failed this request is taken only if there is no other; one that is full for now
// is waited for, not passed over for one that failed.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "sluice/v1/control.pb.h"

namespace sluice::router {

inline constexpr double kTransferTokensPerSecond = 50'000;
inline constexpr double kCrowdedSeconds = 0.2;
// A prefill that has more than this before it is full: what waits in the router is still ordered by
// class, and can go to whoever is free first.
inline constexpr double kPrefillBacklogSeconds = 1.0;
inline constexpr double kTokensPerSecondUnknown = 2000;

// An instance as a decision sees it: its last report, and what was placed since.
struct Candidate {
  sluice::v1::Role role = sluice::v1::ROLE_UNSPECIFIED;
  absl::string_view kv_layout;  // only equal ones can be paired
  int64_t slots = 0;
  int64_t requests = 0;  // running and waiting
  int64_t positions = 0;
  int64_t kv_pages = 0;
  int64_t kv_pages_free = 0;
  int64_t step_tokens = 0;
  int64_t waiting_tokens = 0;
  double tokens_per_second = 0;  // of prompts; 0: not known
  double step_seconds = 0;       // 0: not known
  int64_t cached_pages = 0;      // of this request's first ones
  int64_t placements = 0;        // so far: fewest first among equals
  bool failed_before = false;    // this request
  bool full = false;             // said so itself
};

struct PlacementNeed {
  int64_t tokens = 0;           // known: prompt and output so far
  int64_t tokens_max = 0;       // with all output it may get
  double step_seconds_max = 0;  // that its class wants; 0: none
};

enum class PlacementVerdict {
  kPlaced,
  kWait,  // those who could take it are full for now
  kNone,  // nobody is here who could
};

struct Placement {
  PlacementVerdict verdict = PlacementVerdict::kNone;
  int prefill = -1;  // indices of candidates; equal: a mixed instance
  int decode = -1;
  double cost = 0;
};

Placement Place(const PlacementNeed& need, absl::Span<const Candidate> candidates);

// The longest sequence, in tokens, that some pair or mixed instance could ever hold, and what it is
// limited by; 0 when there is neither. Both of a pair must hold all of it: when an attempt breaks,
// or a decode hands it back, a prefill computes the output so far anew.
struct SequenceLimit {
  int64_t tokens = 0;
  // "positions", or "kv_pages" where an instance counts no more positions than its pages hold.
  absl::string_view limited_by;
};
SequenceLimit LongestSequence(absl::Span<const Candidate> candidates);

}  // namespace sluice::router
