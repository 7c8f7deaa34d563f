#include "tools/sluice/model_options.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_cat.h"
#include "kernels/base/device_name.h"
#include "kernels/base/status.h"

namespace sluice::cli {

void AddModelOptions(CLI::App* command, ModelOptions* options) {
  command->add_option("--model", options->dir, "checkpoint directory, as Hugging Face writes it")
      ->required()
      ->option_text("DIR REQUIRED");
  command
      ->add_option("--numerics", options->numerics,
                   "exact: f32 throughout, the same bits whatever the batch; fast: may round "
                   "activations to bf16 or FP8 where they meet weights; on a GPU the tensor cores "
                   "need fast")
      ->check(CLI::IsMember({"exact", "fast"}))
      ->capture_default_str()
      ->option_text("exact|fast [exact]");
  command
      ->add_option("--kv-dtype", options->kv_dtype,
                   "auto: f32 or bf16, as --numerics has it; fp8: 57 % of bf16, slower, on GPUs "
                   "with --numerics fast")
      ->check(CLI::IsMember({"auto", "fp8"}))
      ->option_text("auto|fp8 [auto]");
  command->add_option("--device", options->device, "cpu, cuda or cuda:N")
      ->check([](const std::string& name) {
        return std::string(ParseDeviceName(name).status().message());
      })
      ->option_text("NAME [cpu]");
  command->add_option("--threads", options->threads, "0: one per core")
      ->check(CLI::Range(0, 1024))
      ->option_text("N [0]");
  command
      ->add_option("--load-format", options->load_format,
                   "dummy: seeded random weights in the geometry of DIR/config.json")
      ->check(CLI::IsMember({"safetensors", "dummy"}))
      ->option_text("safetensors|dummy [safetensors]");
  command->add_option("--dummy-seed", options->dummy_seed, "seed of --load-format dummy")
      ->option_text("N [0]");
  command
      ->add_option("--chat-template", options->chat_template,
                   "name of the chat template, when the model's own is not recognised")
      ->option_text("NAME");
}

absl::StatusOr<TokenizerPtr> LoadTokenizer(const ModelOptions& options) {
  // Only a file that is not there at all means "no tokenizer": a dangling link is an error to be
  // told.
  std::error_code ignored;
  const auto tokenizer_file = std::filesystem::symlink_status(
      std::filesystem::path(options.dir) / "tokenizer.json", ignored);
  if (tokenizer_file.type() == std::filesystem::file_type::not_found) return nullptr;
  return model::Tokenizer::Load(options.dir);
}

absl::StatusOr<instance::LoadedModel> LoadModel(const ModelOptions& options) {
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, instance::MakeBackendOf(options));
  SLUICE_ASSIGN_OR_RETURN(instance::LoadedModel loaded,
                          instance::LoadModel(options, std::move(backend), {.file = stderr}));
  std::fprintf(stderr, "%s\n", loaded.backend->Describe().c_str());
  return loaded;
}

absl::StatusOr<model::ChatTemplate> MakeChatTemplate(const model::Tokenizer& tokenizer,
                                                     const ModelOptions& options) {
  auto chat_template = model::ChatTemplate::Create(tokenizer, options.chat_template);
  if (chat_template.ok() || !options.chat_template.empty()) return chat_template;
  return absl::InvalidArgumentError(
      absl::StrCat(chat_template.status().message(), "; --chat-template sets one"));
}

absl::Status NeedTokenizer(const TokenizerPtr& tokenizer, const ModelOptions& options) {
  if (tokenizer != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      options.dir, " has no tokenizer.json, so text cannot be read; give --prompt-token-ids"));
}

void EndIfStuck(const absl::Status& status) {
  if (!absl::IsDeadlineExceeded(status)) return;
  std::fprintf(stderr, "sluice: %s: the device hangs\n", std::string(status.message()).c_str());
  std::_Exit(1);
}

absl::Status DamagedLogits(const std::string& model_dir) {
  return absl::InternalError(absl::StrCat(
      "the model's logits are not finite, so it has no answer; its weights may be damaged: see ",
      "`sluice inspect --check-data ", model_dir, "`"));
}

}  // namespace sluice::cli
