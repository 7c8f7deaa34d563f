// Sampling from one row of logits, as kernels/ops/sampling.h describes, without sorting it.
//
// The tokens that min_p, top_k and top_p leave are those down to a last one in the order
// (probability falling, id rising), so all three come down to that one token, the cut. It is found
// by a histogram over buckets of log-probability and a selection inside one bucket.
// Threads: one RowSampler per worker. Allocates only when the vocabulary grows.
#pragma once

#include <stdint.h>

#include "kernels/base/aligned_buffer.h"
#include "kernels/cpu/sampling_kernels.h"
#include "kernels/ops/sampling.h"

namespace sluice {

// The pointers of SampleParams that concern one row; the caller has checked ids and slots.
struct SampleRowTables {
  const float* logits = nullptr;
  int64_t vocab = 0;
  const int32_t* bias_ids = nullptr;     // of all rows
  const float* bias_values = nullptr;    // of all rows
  const int32_t* banned_ids = nullptr;   // of all rows
  const uint8_t* prompt_mask = nullptr;  // of this row's slot
  int32_t* output_counts = nullptr;      // of this row's slot
};

class RowSampler {
 public:
  explicit RowSampler(const SamplingKernels& kernels) : kernels_(&kernels) {}

  void Reserve(int64_t vocab);

  // The sampled token. Adds it to output_counts if the row counts tokens.
  int32_t Sample(const SamplingRow& row, const SampleRowTables& tables);

  // log_softmax of the logits: of `token`, and the row.num_logprobs best, most probable first, ties
  // to the lowest id.
  float Logprobs(const SamplingRow& row, const SampleRowTables& tables, int32_t token,
                 int32_t* top_ids, float* top_logprobs);

 private:
  SampleCandidate FindCut(const SamplingRow& row, int64_t vocab);
  // Into candidates_; returns how many.
  int64_t GatherBucket(int64_t vocab, float y_min, int bucket);

  const SamplingKernels* kernels_;
  AlignedBuffer values_;      // f32 [vocab]
  AlignedBuffer candidates_;  // SampleCandidate [vocab]
};

}  // namespace sluice
