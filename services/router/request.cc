#include "services/router/request.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sluice::router {

absl::StatusOr<size_t> CheckAgainstLog(absl::Span<const uint32_t> log, uint32_t first_output,
                                       absl::Span<const uint32_t> tokens, uint32_t max_tokens) {
  if (first_output > log.size()) {
    return absl::InternalError(absl::StrCat("a gap: tokens from output ", first_output,
                                            " on, but only ", log.size(), " are known"));
  }
  if (first_output + tokens.size() > max_tokens) {
    return absl::InternalError(
        absl::StrCat("output ", first_output + tokens.size(), " of at most ", max_tokens));
  }
  const size_t known = std::min(log.size() - first_output, tokens.size());
  for (size_t i = 0; i < known; ++i) {
    if (log[first_output + i] == tokens[i]) continue;
    return absl::InternalError(absl::StrCat("a contradiction: output ", first_output + i,
                                            " was sent as ", log[first_output + i], ", now it is ",
                                            tokens[i]));
  }
  return known;
}

}  // namespace sluice::router
