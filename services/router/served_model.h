// The model that a router serves, as far as a router needs it: everything but the weights.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "services/model/chat_template.h"
#include "services/model/model_config.h"
#include "services/model/page_hash.h"
#include "services/model/tokenizer.h"

namespace sluice::router {

struct ServedModelOptions {
  std::string dir;
  std::string name;               // as clients call it
  std::string chat_template;      // its name; empty: recognised by the tokenizer's
  int64_t prompt_tokens_max = 0;  // 0: what the context holds
  bool truncate_prompts = false;  // cut too long prompts from the left, asked for or not
};

// What generation_config.json says a request gets that does not say so itself.
struct SamplingDefaults {
  float temperature = 1;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  int32_t top_k = 0;
};

// Immutable once made.
struct ServedModel {
  std::string name;
  std::string root;         // the directory's name
  std::string fingerprint;  // of the model's files, for people
  model::ModelConfig config;
  std::unique_ptr<const model::Tokenizer> tokenizer;
  std::optional<model::ChatTemplate> chat_template;  // none: no chats
  std::string why_no_chats;                          // then
  SamplingDefaults defaults;
  model::PageHash hash{};
  int64_t context_tokens = 0;  // prompt and answer together
  int64_t prompt_tokens_max = 0;
  bool truncate_prompts = false;
};

// Errors: NotFound or InvalidArgument naming the file and what is wrong in it. A directory whose
// chat template is missing or unknown is fine; a name in `options` that is unknown is not.
absl::StatusOr<std::unique_ptr<const ServedModel>> LoadServedModel(
    const ServedModelOptions& options);

// generation_config.json's text; `origin` names it in errors.
absl::StatusOr<SamplingDefaults> ParseSamplingDefaults(absl::string_view json,
                                                       absl::string_view origin);

}  // namespace sluice::router
