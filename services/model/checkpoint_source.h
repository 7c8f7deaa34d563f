// Weights from a checkpoint's mapped files: views straight into them, pages read in parallel. For a
// device only vectors and scales are read: whoever copies the matrices reads them (files()).
#pragma once

#include <string>
#include <vector>

#include "services/model/checkpoint.h"
#include "services/model/weight_source.h"

namespace sluice::model {

// A tensor that the configuration expects beside the one that the checkpoint holds.
struct MatchedTensor {
  const TensorSpec* spec = nullptr;
  const StoredTensor* stored = nullptr;  // null: absent, and may be
  const StoredTensor* scales = nullptr;  // of FP8 tensors
};

// Pairs each of `specs` with its tensor: types and shapes are as they should be, nothing that must
// be there is missing and nothing else is there but rotary_emb.inv_freq, which is ignored. Errors
// (InvalidArgument) name file, tensor, found and wanted; the first few when there are many.
absl::StatusOr<std::vector<MatchedTensor>> MatchTensors(const ModelConfig& config,
                                                        const std::vector<TensorSpec>& specs,
                                                        const Checkpoint& checkpoint);

// InvalidArgument when `stored`, an f32 tensor of FP8 scales, holds something not finite.
absl::Status CheckScales(const StoredTensor& stored);

// `specs` must outlive the source.
absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpointSource(
    const std::string& dir, const ModelConfig& config, const std::vector<TensorSpec>& specs,
    bool for_device = false);

}  // namespace sluice::model
