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

// Null: the directory has none.
using TokenizerPtr = std::unique_ptr<const model::Tokenizer>;

absl::StatusOr<TokenizerPtr> LoadTokenizer(const ModelOptions& options);
// The weights, which take their time, and the device they are on.
absl::StatusOr<instance::LoadedModel> LoadModel(const ModelOptions& options);

// FailedPrecondition, saying what to do, when the model has no tokenizer.
absl::Status NeedTokenizer(const TokenizerPtr& tokenizer, const ModelOptions& options);

// The one that the options name, or the model's own.
absl::StatusOr<model::ChatTemplate> MakeChatTemplate(const model::Tokenizer& tokenizer,
                                                     const ModelOptions& options);

// A step that does not end (DeadlineExceeded) holds its threads and what they use, so that nothing
// could be freed: says so and ends the process, status 1. Does nothing about any other status.
void EndIfStuck(const absl::Status& status);

// Internal: what to tell about a request that ended with FinishReason::kDamaged.
absl::Status DamagedLogits(const std::string& model_dir);

}  // namespace sluice::cli
