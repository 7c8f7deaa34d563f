// An evaluation set answered by a running cluster, over its OpenAI API.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tools/sluice/eval_set.h"
#include "tools/sluice/http_client.h"

namespace sluice::cli {

struct EndpointEvalOptions {
  std::string model;
  int in_flight = 64;  // requests at the same time
  int64_t max_tokens = 1024;
};

// Asks greedily, each problem once; an answer of 429 or 503 is asked for again when the server
// says, for five minutes at most. The first failure ends all, naming its problem.
absl::Status EvalOverEndpoint(const HttpClient& client, const EndpointEvalOptions& options,
                              const std::vector<Problem>& problems, Tally* tally);

}  // namespace sluice::cli
