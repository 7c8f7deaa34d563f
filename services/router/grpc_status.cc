#include "services/router/grpc_status.h"

#include "absl/strings/ascii.h"
#include "services/router/api_error.h"
#include "services/router/retry_hint.h"
#include "services/rpc/status.h"

namespace sluice::router {

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const ApiError error = ToApiError(status);
  return rpc::ToGrpc(status, {.retry_after = RetryAfter(status),
                              .reason = absl::AsciiStrToUpper(error.code),
                              .field = error.param});
}

}  // namespace sluice::router
