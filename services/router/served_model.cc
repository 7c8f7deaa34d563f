#include "services/router/served_model.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/json.h"
#include "services/base/mapped_file.h"
#include "services/router/json_fields.h"

namespace sluice::router {
namespace {

constexpr size_t kConfigBytesMax = size_t{1} << 20;

absl::StatusOr<SamplingDefaults> LoadSamplingDefaults(const std::string& dir) {
  const std::string path = dir + "/generation_config.json";
  const auto text = ReadFile(path, kConfigBytesMax);
  if (absl::IsNotFound(text.status())) return SamplingDefaults{};
  SLUICE_RETURN_IF_ERROR(text.status());
  return ParseSamplingDefaults(*text, path);
}

}  // namespace

absl::StatusOr<SamplingDefaults> ParseSamplingDefaults(absl::string_view text,
                                                       absl::string_view origin) {
  SLUICE_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text, origin));
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": wanted a JSON object"));
  }
  JsonFields fields(json, absl::StrCat(origin, ": "));
  SamplingDefaults defaults;
  // Without sampling, Hugging Face takes the most probable token whatever the numbers say.
  bool do_sample = true;
  fields.Bool("do_sample", &do_sample);
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  fields.Float("temperature", 0, 100, &temperature);
  fields.Float("top_p", 0, 1, &top_p, /*above_low=*/true);
  fields.Float("min_p", 0, 1, &min_p);
  fields.Float("repetition_penalty", 0, 100, &repetition_penalty, /*above_low=*/true);
  fields.Int("top_k", -1, INT32_MAX, &defaults.top_k);
  SLUICE_RETURN_IF_ERROR(fields.status());
  defaults.temperature = do_sample ? temperature.value_or(defaults.temperature) : 0.0f;
  defaults.top_p = top_p.value_or(defaults.top_p);
  defaults.min_p = min_p.value_or(defaults.min_p);
  defaults.repetition_penalty = repetition_penalty.value_or(defaults.repetition_penalty);
  defaults.top_k = std::max(defaults.top_k, 0);
  return defaults;
}

absl::StatusOr<std::unique_ptr<const ServedModel>> LoadServedModel(
    const ServedModelOptions& options) {
  auto served = std::make_unique<ServedModel>();
  served->name = options.name;
  served->root = std::filesystem::path(options.dir).lexically_normal().filename().string();
  SLUICE_ASSIGN_OR_RETURN(served->config, model::LoadModelConfig(options.dir));
  SLUICE_ASSIGN_OR_RETURN(served->tokenizer, model::Tokenizer::Load(options.dir));
  auto chat_template = model::ChatTemplate::Create(*served->tokenizer, options.chat_template);
  if (chat_template.ok()) {
    served->chat_template = *std::move(chat_template);
  } else if (options.chat_template.empty()) {
    served->why_no_chats = std::string(chat_template.status().message());
  } else {
    return chat_template.status();
  }
  SLUICE_ASSIGN_OR_RETURN(served->defaults, LoadSamplingDefaults(options.dir));
  SLUICE_ASSIGN_OR_RETURN(served->hash, model::ModelHash(options.dir));
  served->fingerprint =
      absl::StrCat("fp_", absl::BytesToHexString(absl::string_view(
                              reinterpret_cast<const char*>(served->hash.data()), 5)));
  served->context_tokens = served->config.max_position_embeddings;
  // One position is left for the answer.
  const int64_t room = std::max<int64_t>(1, served->context_tokens - 1);
  served->prompt_tokens_max =
      options.prompt_tokens_max > 0 ? std::min(options.prompt_tokens_max, room) : room;
  served->truncate_prompts = options.truncate_prompts;
  return served;
}

}  // namespace sluice::router
