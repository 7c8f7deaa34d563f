// A checkpoint, loaded for an engine: what every program that runs a model does first.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops/backend.h"
#include "services/base/progress.h"
#include "services/engine/engine.h"
#include "services/model/model_config.h"
#include "services/model/weights.h"

namespace sluice::instance {

// Which model, computed how.
struct ModelSource {
  std::string dir;
  std::string numerics = "exact";           // exact, fast
  std::string kv_dtype = "auto";            // auto (f32 or bf16, as numerics have it), fp8
  std::string device = "cpu";               // cpu, cuda, cuda:N
  int threads = 0;                          // 0: one per core
  std::string load_format = "safetensors";  // safetensors, dummy
  uint64_t dummy_seed = 0;                  // for dummy

  bool exact() const { return numerics == "exact"; }
};

struct LoadedModel {
  model::ModelConfig config;
  std::unique_ptr<Backend> backend;
  std::shared_ptr<const model::ModelWeights> weights;
  engine::EngineOptions engine_options;  // numerics filled in; sizes are the program's
};

// The device that `source` names.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackendOf(const ModelSource& source);
// The rest of it, for that device.
absl::StatusOr<LoadedModel> LoadModel(const ModelSource& source, std::unique_ptr<Backend> backend,
                                      const ProgressOut& progress);

// Bytes of KV of one token, all layers.
int64_t KvBytesPerToken(const model::ModelConfig& config, DType kv_dtype);

}  // namespace sluice::instance
