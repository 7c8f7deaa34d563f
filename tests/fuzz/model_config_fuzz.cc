// Any bytes as config.json. What is accepted must be within the limits that the rest of the
// program, which divides, allocates and loops by these numbers, relies on.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "services/model/rope.h"
#include "services/model/tensor_manifest.h"

namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using sluice::model::ModelConfig;
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<ModelConfig> config = sluice::model::ParseModelConfig(text, "config.json");
  if (!config.ok()) {
    Check(config.status().message().size() < 20000);
    return 0;
  }
  Check(config->n_routed_experts == 0 || config->n_routed_experts % config->n_group == 0);
  Check(config->num_experts_per_tok <= config->n_routed_experts);
  Check(config->topk_group <= config->n_group || config->n_routed_experts == 0);
  Check(std::isfinite(config->SoftmaxScale()) && config->SoftmaxScale() > 0);
  for (const int32_t id : config->eos_token_ids) Check(id >= 0 && id < config->vocab_size);
  for (const float value : MakeCosSinTable(*config, 3)) Check(std::isfinite(value));
  if (config->num_hidden_layers * (config->n_routed_experts + 1) > 1000) return 0;  // keep it quick
  for (const auto& spec : ExpectedTensors(*config)) {
    Check(spec.rows > 0 && spec.cols >= 0 && spec.rows <= (int64_t{1} << 40));
  }
  return 0;
}
