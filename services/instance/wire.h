// Between the messages of control.proto and the engine's types.
#pragma once

#include "absl/status/statusor.h"
#include "services/engine/scheduler.h"
#include "sluice/v1/control.pb.h"

namespace sluice::instance {

// InvalidArgument for what the engine's types cannot hold; the engine checks the rest.
absl::StatusOr<engine::Request> MakeRequest(const v1::Admit& admit);

v1::Finish ToFinish(engine::FinishReason reason);

// Appends one sampled token. `num_logprobs` as in engine::SamplingParams.
void AppendToken(const engine::SampledToken& token, int32_t num_logprobs, v1::RequestTokens* out);

}  // namespace sluice::instance
