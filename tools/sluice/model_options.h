// What every command that runs a model takes, and the model it gets for it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"
#include "kernels/ops/backend.h"
#include "services/engine/engine.h"
#include "services/model/chat_template.h"
#include "services/model/model_config.h"
#include "services/model/tokenizer.h"
#include "services/model/weights.h"

namespace sluice::cli {

struct ModelOptions {
  std::string dir;
  std::string numerics = "exact";
  int threads = 0;
  std::string load_format = "safetensors";
  uint64_t dummy_seed = 0;
  std::string chat_template;
};

void AddModelOptions(CLI::App* command, ModelOptions* options);

// A checkpoint that is loaded, and the device it runs on.
struct LoadedModel {
  model::ModelConfig config;
  std::unique_ptr<const model::Tokenizer> tokenizer;  // null: the directory has none
  std::shared_ptr<const model::ModelWeights> weights;
  std::unique_ptr<Backend> backend;
  engine::EngineOptions engine_options;  // numerics filled in; sizes are the command's
};

absl::StatusOr<LoadedModel> LoadModel(const ModelOptions& options);

// FailedPrecondition, saying what to do, when the model has no tokenizer.
absl::Status NeedTokenizer(const LoadedModel& model, const ModelOptions& options);

}  // namespace sluice::cli
