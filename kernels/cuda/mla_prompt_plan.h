// How prompt attention is cut into passes: what is worked on together, given that the keys and
// values of a bounded number of positions exist at a time. No device.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/mla_prompt_launch.h"
#include "kernels/ops/attention.h"

namespace sluice {

// Every pair of a query and a key that it sees is in exactly one piece. Sequences that fit into a
// pass are not cut; of one that is cut, the pieces' keys come in rising order. Within a pass the
// pieces whose items take longest go first.
// `table_stride`: between rows of the page table. `heads` is at least 1.
std::vector<cuda::PromptPass> PlanPrompt(absl::Span<const PromptChunk> chunks, int64_t table_stride,
                                         int heads);

}  // namespace sluice
