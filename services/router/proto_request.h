// The public gRPC API's messages to and from what the edge works with. No gRPC here.
#pragma once

#include "absl/status/statusor.h"
#include "services/router/openai_request.h"
#include "services/router/openai_response.h"
#include "services/router/reply_stream.h"
#include "sluice/v1/generation.pb.h"

namespace sluice::router {

// Errors: FieldError (api_error.h) with the field as the proto calls it ("options.top_p"), its
// value and what is wanted.
absl::StatusOr<ParsedRequest> FromProto(const v1::GenerateRequest& message);
absl::StatusOr<ParsedRequest> FromProto(const v1::ChatRequest& message);
absl::StatusOr<TokenizeBody> FromProto(const v1::TokenizeRequest& message);

v1::GenerateChunk ToProto(const ChoiceDelta& delta);
v1::Usage ToProto(const ApiUsage& usage);
v1::Timings ToProto(const Timings& timings);

}  // namespace sluice::router
