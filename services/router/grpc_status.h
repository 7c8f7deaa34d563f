// The edge's errors as gRPC tells them.
#pragma once

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace sluice::router {

// With RetryInfo, ErrorInfo and BadRequest where api_error.h has something to say.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace sluice::router
