// Writes a checkpoint of random weights (services/model/random_weights.h) for any config.json.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace sluice::model {

struct RandomCheckpointOptions {
  uint64_t seed = 0;
  bool fp8 = false;  // FP8 in 128 x 128 blocks, else bf16
  bool include_mtp = true;
  int64_t shard_bytes = int64_t{4} << 30;  // a file holds this much, or one larger tensor
  int threads = 0;                         // 0: one per core
  bool show_progress = false;
};

// Fills directory `out` (made if absent) with config.json, whose quantization_config and
// num_nextn_predict_layers are made to fit the options, and model.safetensors, or shards and
// model.safetensors.index.json. The MTP module leaves out the embedding and head that it shares
// with the main model. Memory stays bounded, whatever the model's size. `origin` names the
// configuration in errors. InvalidArgument for a bad configuration; FailedPrecondition when `out`
// holds a checkpoint already; Unavailable when it cannot be written.
absl::Status WriteRandomCheckpoint(absl::string_view config_json, absl::string_view origin,
                                   const std::string& out, const RandomCheckpointOptions& options);

}  // namespace sluice::model
