// What every command that runs a model takes, and the model it gets for it.
#pragma once

#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"
#include "services/instance/model_loading.h"
#include "services/model/chat_template.h"
#include "services/model/tokenizer.h"

namespace sluice::cli {

struct ModelOptions : instance::ModelSource {
  std::string chat_template;
};

void AddModelOptions(CLI::App* command, ModelOptions* options);

// A checkpoint that is loaded, and the device it runs on.
struct LoadedModel : instance::LoadedModel {
  std::unique_ptr<const model::Tokenizer> tokenizer;  // null: the directory has none
};

absl::StatusOr<LoadedModel> LoadModel(const ModelOptions& options);

// FailedPrecondition, saying what to do, when the model has no tokenizer.
absl::Status NeedTokenizer(const LoadedModel& model, const ModelOptions& options);

// A step that does not end (DeadlineExceeded) holds its threads and what they use, so that nothing
// could be freed: says so and ends the process, status 1. Does nothing about any other status.
void EndIfStuck(const absl::Status& status);

// Internal: what to tell about a request that ended with FinishReason::kDamaged.
absl::Status DamagedLogits(const std::string& model_dir);

}  // namespace sluice::cli
