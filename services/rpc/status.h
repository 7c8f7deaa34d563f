// absl::Status to and from gRPC's, with the details that google.rpc has words for: on the wire they
// travel in grpc-status-details-bin, where the tools of every language look for them.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"

namespace sluice::rpc {

struct ErrorDetails {
  std::optional<absl::Duration> retry_after;  // RetryInfo: when to come again
  std::string reason;  // ErrorInfo, of the domain "sluice": "CONTEXT_LENGTH_EXCEEDED"
  std::string field;   // BadRequest: which field of the request is wrong
  bool operator==(const ErrorDetails&) const = default;
};

// Messages longer than 2 KiB are cut, for they travel in headers; text that is not UTF-8 is mended.
grpc::Status ToGrpc(const absl::Status& status, const ErrorDetails& details = {});

absl::Status FromGrpc(const grpc::Status& status);
// What there is of them; nothing of a status without details.
ErrorDetails DetailsOf(const grpc::Status& status);

}  // namespace sluice::rpc
