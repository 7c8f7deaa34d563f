// Random weights of any configuration, made on the GPU.
#pragma once

#include <cstdint>
#include <memory>

#include "services/model/model_config.h"
#include "services/model/weights.h"

namespace sluice::bench {

// Normally distributed, as services/model/random_weights.h has them, all tensors distinct; in
// block-scaled FP8 where the configuration says so, else in bf16. The first `experts` experts of
// each layer alone, in slots of the same number. The MTP module is left out.
std::shared_ptr<const model::ModelWeights> RandomDeviceWeights(const model::ModelConfig& config,
                                                               int64_t experts, uint64_t seed);

}  // namespace sluice::bench
