// How a refusal says when to come again: an absl::Status that carries a duration. The HTTP edge
// makes Retry-After of it, the gRPC edge google.rpc.RetryInfo.
#pragma once

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace sluice::router {

absl::Status WithRetryAfter(absl::Status status, absl::Duration retry_after);
// Nothing when the status carries no hint: coming again would not help.
std::optional<absl::Duration> RetryAfter(const absl::Status& status);

}  // namespace sluice::router
