// One request as the scheduler takes it, and which part of it is done here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "services/engine/sampling_params.h"
#include "services/model/page_hash.h"

namespace sluice::engine {

enum class Leg {
  kWhole,    // prompt and output
  kPrefill,  // the prompt and one token; its KV is for somebody else
  kDecode,   // all but that: the prompt's KV comes from somebody else
};

struct Request {
  uint64_t id = 0;              // unique among the scheduler's requests
  std::vector<int32_t> prompt;  // at least one token
  // Tokens that a former attempt has sent already: computed like the prompt, never sampled again.
  // They count for max_tokens, penalties and the sampling position.
  std::vector<int32_t> output;
  SamplingParams sampling;

  Leg leg = Leg::kWhole;
  uint32_t priority = 0;  // class: 0 is served first, and loses its pages last
  // Names of the first full pages of prompt and output, as many as are known already, and where
  // their chain starts. With neither, its pages are not shared with any other request.
  std::vector<model::PageHash> page_hashes;
  std::optional<model::PageHash> page_hash_seed;
  // When its pages are needed elsewhere: give the request back instead of computing it again.
  bool may_hand_back = false;
};

// The most positions of KV that the request may come to occupy. A last token needs none.
int64_t PositionsLimit(const Request& request, int64_t positions_max);

// InvalidArgument naming what is wrong with the request itself: tokens, sampling, lengths, hashes.
absl::Status ValidateRequest(const Request& request, int64_t vocab_size, int64_t positions_max);

// InvalidArgument naming the first token outside the vocabulary: "WHAT[3] is token id …".
absl::Status CheckTokens(const std::string& what, absl::Span<const int32_t> tokens,
                         int64_t vocab_size);

}  // namespace sluice::engine
