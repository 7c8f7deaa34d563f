// Do the types and shapes of an op's parameters fit together? For every backend: only the views are
// looked at, never what they point to, which may lie on a device.
// InvalidArgument naming the field, what it is and what was wanted.
#pragma once

#include "absl/status/status.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/sampling.h"

namespace sluice {

absl::Status CheckWeight(absl::string_view what, const WeightView& w, int64_t rows, int64_t cols);

absl::Status CheckLinear(const LinearParams& params);
absl::Status CheckMultiLinear(const MultiLinearParams& params);
absl::Status CheckGatedLinear(const GatedLinearParams& params);
// The weights of a group with rows to compute are for the backend to check (CheckWeight).
absl::Status CheckGroupedLinear(const GroupedLinearParams& params);
absl::Status CheckGroupedGatedLinear(const GroupedGatedLinearParams& params);

absl::Status CheckEmbed(const EmbedParams& params);
absl::Status CheckRmsNorm(const RmsNormParams& params);
absl::Status CheckGatherRows(const GatherRowsParams& params);
absl::Status CheckFillRandom(const FillRandomParams& params);

absl::Status CheckMlaCacheWrite(const MlaCacheWriteParams& params);
absl::Status CheckMlaAbsorbed(const MlaAbsorbedParams& params);
absl::Status CheckMlaPrompt(const MlaPromptParams& params);

absl::Status CheckGate(const GateParams& params);
absl::Status CheckMoePermute(const MoePermuteParams& params);
absl::Status CheckMoeCombine(const MoeCombineParams& params);

absl::Status CheckSample(const SampleParams& params);

}  // namespace sluice
