// Rotary position angles, YaRN included.
#pragma once

#include <cstdint>
#include <vector>

#include "services/model/model_config.h"

namespace sluice::model {

// [positions, qk_rope_head_dim] f32: per position qk_rope_head_dim / 2 cosines, then as many sines,
// of position * frequency. Frequencies and angles are computed in double. When YaRN's mscale and
// mscale_all_dim differ, both are scaled by their ratio.
// Source: deepseek-ai/DeepSeek-V3 inference/model.py, precompute_freqs_cis (yarn applied at all
// positions, as transformers does).
std::vector<float> MakeCosSinTable(const ModelConfig& config, int64_t positions);

}  // namespace sluice::model
