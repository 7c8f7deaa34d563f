// sluice generate: one prompt, streamed.

#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/base/status.h"
#include "services/base/mapped_file.h"
#include "services/base/program.h"
#include "services/engine/generator.h"
#include "services/engine/request.h"
#include "services/model/model_config.h"
#include "services/model/reply.h"
#include "tools/sluice/commands.h"
#include "tools/sluice/model_options.h"
#include "tools/sluice/printer.h"

namespace sluice::cli {
namespace {

struct GenerateOptions {
  ModelOptions model;
  std::optional<std::string> prompt;
  std::optional<std::string> prompt_file;
  std::optional<std::string> prompt_token_ids;
  std::string system;
  bool chat = false;
  bool thinking = false;
  bool json = false;
  bool ignore_eos = false;
  engine::SamplingParams sampling{.temperature = 0.0f};
  std::optional<uint64_t> seed;
  std::vector<std::string> logit_bias;
  std::vector<std::string> stop;
};

struct Prompt {
  std::vector<int32_t> ids;
  bool in_thinking = false;
};

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One literal value each time it is given: CLI11 would take brackets and what follows for a list.
CLI::Option* AddRepeatedOption(CLI::App* command, const char* name,
                               std::vector<std::string>* values, const char* description) {
  return command
      ->add_option_function<std::string>(
          name, [values](const std::string& value) { values->push_back(value); }, description)
      ->trigger_on_parse();
}

absl::StatusOr<std::vector<int32_t>> ParseIds(const std::string& text) {
  std::vector<int32_t> ids;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(part, &id)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--prompt-token-ids: '", part, "' is not a token id; wanted are numbers like 1,2,3"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<std::pair<int32_t, float>> ParseBias(const std::string& text) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits('=', 1));
  std::pair<int32_t, float> bias;
  if (!absl::SimpleAtoi(parts.first, &bias.first) ||
      !absl::SimpleAtof(parts.second, &bias.second)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--logit-bias: '", text, "' is not TOKEN_ID=BIAS, for example 42=-5"));
  }
  return bias;
}

// The text of --prompt or --prompt-file.
absl::StatusOr<std::string> ReadPrompt(const GenerateOptions& options) {
  if (options.prompt.has_value()) return *options.prompt;
  constexpr size_t kBytesMax = size_t{64} << 20;
  if (*options.prompt_file != "-") return ReadFile(*options.prompt_file, kBytesMax);
  std::string text;
  char part[4096];
  while (const size_t got = std::fread(part, 1, sizeof(part), stdin)) {
    text.append(part, got);
    if (text.size() > kBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("--prompt-file -: more than ", kBytesMax, " bytes"));
    }
  }
  return text;
}

absl::StatusOr<Prompt> MakePrompt(const GenerateOptions& options, const TokenizerPtr& tokenizer) {
  if (options.prompt_token_ids.has_value()) {
    SLUICE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, ParseIds(*options.prompt_token_ids));
    return Prompt{std::move(ids)};
  }
  SLUICE_RETURN_IF_ERROR(NeedTokenizer(tokenizer, options.model));
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadPrompt(options));
  if (!options.chat) {
    SLUICE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer->EncodePrompt(text));
    return Prompt{std::move(ids)};
  }
  SLUICE_ASSIGN_OR_RETURN(const model::ChatTemplate chat_template,
                          MakeChatTemplate(*tokenizer, options.model));
  std::vector<model::ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", text});
  SLUICE_ASSIGN_OR_RETURN(
      model::EncodedPrompt encoded,
      chat_template.Encode(*tokenizer, messages, {.thinking = options.thinking}));
  return Prompt{std::move(encoded.ids), encoded.in_thinking};
}

// Completes the sampling parameters by what the model says. `prompt_length` bounds max_tokens.
absl::StatusOr<engine::SamplingParams> MakeSampling(const GenerateOptions& options,
                                                    const model::ModelConfig& config,
                                                    int64_t prompt_length) {
  engine::SamplingParams sampling = options.sampling;
  const int64_t room = config.max_position_embeddings - prompt_length;
  if (sampling.max_tokens == 0) sampling.max_tokens = std::max<int64_t>(room, 1);
  if (!options.ignore_eos) sampling.stop_token_ids = config.eos_token_ids;
  sampling.seed = options.seed.has_value() ? *options.seed : std::random_device{}();
  for (const std::string& text : options.logit_bias) {
    SLUICE_ASSIGN_OR_RETURN(auto bias, ParseBias(text));
    sampling.logit_bias.push_back(bias);
  }
  return sampling;
}

nlohmann::json LogprobJson(const engine::SampledToken& token) {
  nlohmann::json top = nlohmann::json::array();
  for (const engine::TokenLogprob& entry : token.top_logprobs) {
    top.push_back({{"token_id", entry.token_id}, {"logprob", entry.logprob}});
  }
  return {{"token_id", token.token_id}, {"logprob", token.logprob}, {"top_logprobs", top}};
}

struct Generated {
  std::vector<engine::SampledToken> tokens;
  std::string reasoning, content;
  std::string finish_reason;
  double first_token_s = 0, total_s = 0;
};

// As --prompt-token-ids takes them.
void PrintId(int32_t id, bool first) {
  std::printf(first ? "%d" : ",%d", id);
  std::fflush(stdout);
}

absl::StatusOr<Generated> RunRequest(engine::Engine* engine, const TokenizerPtr& tokenizer,
                                     const Prompt& prompt, const engine::SamplingParams& sampling,
                                     const GenerateOptions& options) {
  SLUICE_ASSIGN_OR_RETURN(model::Reply reply,
                          model::Reply::Create(tokenizer.get(), {.in_thinking = prompt.in_thinking,
                                                                 .split_reasoning = options.chat,
                                                                 .stops = options.stop}));
  std::optional<Printer> printer;
  Generated generated;
  const auto take = [&](const model::ReplyDelta& delta) {
    generated.reasoning += delta.reasoning;
    generated.content += delta.content;
    if (printer.has_value()) printer->Print(delta);
  };
  const Clock::time_point start = Clock::now();
  engine::Generator generator(engine);
  SLUICE_RETURN_IF_ERROR(
      generator.Add({.id = 1, .prompt = prompt.ids, .output = {}, .sampling = sampling}));
  const bool as_ids = !options.json && tokenizer == nullptr;
  if (!options.json && !as_ids) printer.emplace(prompt.in_thinking);
  std::vector<engine::TokenEvent> events;
  while (!generator.idle()) {
    events.clear();
    SLUICE_RETURN_IF_ERROR(generator.Step(&events));
    for (const engine::TokenEvent& event : events) {
      if (event.finish == engine::FinishReason::kDamaged) return DamagedLogits(options.model.dir);
      if (generated.tokens.empty()) generated.first_token_s = SecondsSince(start);
      if (as_ids) PrintId(event.token.token_id, /*first=*/generated.tokens.empty());
      generated.tokens.push_back(event.token);
      const bool is_stop_token = event.finish == engine::FinishReason::kStop;
      if (!is_stop_token) take(reply.Feed(event.token.token_id));
      if (reply.stopped()) {
        generated.finish_reason = "stop";
        if (!event.finish.has_value()) SLUICE_RETURN_IF_ERROR(generator.Cancel(1));
        break;
      }
      if (event.finish.has_value()) generated.finish_reason = is_stop_token ? "stop" : "length";
    }
  }
  take(reply.Finish());
  generated.total_s = SecondsSince(start);
  if (printer.has_value()) printer->Finish();
  if (as_ids) std::puts("");
  return generated;
}

nlohmann::json ToJson(const Generated& generated, const Prompt& prompt, bool has_text,
                      const GenerateOptions& options) {
  nlohmann::json json;
  json["prompt_token_ids"] = prompt.ids;
  json["token_ids"] = nlohmann::json::array();
  for (const engine::SampledToken& token : generated.tokens)
    json["token_ids"].push_back(token.token_id);
  json["text"] = has_text ? nlohmann::json(generated.content) : nlohmann::json();
  if (options.chat) json["reasoning"] = generated.reasoning;
  json["finish_reason"] = generated.finish_reason;
  if (options.sampling.num_logprobs >= 0) {
    json["logprobs"] = nlohmann::json::array();
    for (const engine::SampledToken& token : generated.tokens) {
      json["logprobs"].push_back(LogprobJson(token));
    }
  }
  return json;
}

void TellKernels(const engine::Engine& engine) {
  if (engine.kernel_calls() == nullptr) return;
  std::string text;
  for (const KernelCalls::Entry& entry : engine.kernel_calls()->Snapshot()) {
    absl::StrAppend(&text, " ", entry.op, "=", entry.kernel);
  }
  std::fprintf(stderr, "kernels:%s\n", text.c_str());
}

// Options that each are right, but not together.
absl::Status UsageError(absl::string_view what) {
  return WithExitCode(
      absl::InvalidArgumentError(absl::StrCat("generate: ", what, "; see sluice generate --help")),
      kExitUsage);
}

absl::Status Generate(const GenerateOptions& options) {
  if (options.prompt.has_value() + options.prompt_file.has_value() +
          options.prompt_token_ids.has_value() !=
      1) {
    return UsageError("give exactly one of --prompt, --prompt-file, --prompt-token-ids");
  }
  if (options.sampling.num_logprobs >= 0 && !options.json) {
    return UsageError("--logprobs needs --json: text output has no place for them");
  }
  // What can be wrong with the request is found before the weights are loaded.
  SLUICE_ASSIGN_OR_RETURN(const TokenizerPtr tokenizer, LoadTokenizer(options.model));
  SLUICE_ASSIGN_OR_RETURN(const model::ModelConfig config,
                          model::LoadModelConfig(options.model.dir));
  SLUICE_ASSIGN_OR_RETURN(const Prompt prompt, MakePrompt(options, tokenizer));
  const int64_t prompt_length = static_cast<int64_t>(prompt.ids.size());
  SLUICE_ASSIGN_OR_RETURN(const engine::SamplingParams sampling,
                          MakeSampling(options, config, prompt_length));
  const int64_t limit = config.max_position_embeddings;
  // The sum may not overflow: a limit given by hand can be anything.
  const int64_t positions =
      sampling.max_tokens < limit - prompt_length ? prompt_length + sampling.max_tokens : limit;
  SLUICE_RETURN_IF_ERROR(
      engine::ValidateRequest({.id = 1, .prompt = prompt.ids, .output = {}, .sampling = sampling},
                              config.vocab_size, positions));

  SLUICE_ASSIGN_OR_RETURN(const instance::LoadedModel model, LoadModel(options.model));
  engine::EngineOptions engine_options = model.engine_options;
  engine_options.slots_max = 1;
  engine_options.positions_max = positions;
  engine_options.kv_pages = PagesFor(positions);
  SLUICE_ASSIGN_OR_RETURN(
      const std::unique_ptr<engine::Engine> engine,
      engine::Engine::Create(model.config, model.weights, model.backend.get(), engine_options));

  auto result = RunRequest(engine.get(), tokenizer, prompt, sampling, options);
  EndIfStuck(result.status());
  SLUICE_ASSIGN_OR_RETURN(const Generated generated, std::move(result));
  if (options.json) {
    std::puts(ToJson(generated, prompt, tokenizer != nullptr, options)
                  .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                  .c_str());
  }
  TellKernels(*engine);
  const double decode_s = generated.total_s - generated.first_token_s;
  std::fprintf(stderr, "%zu prompt tokens in %.0f ms, %zu tokens in %.2f s (%.0f tokens/s)\n",
               prompt.ids.size(), generated.first_token_s * 1e3, generated.tokens.size(),
               generated.total_s, decode_s > 0 ? (generated.tokens.size() - 1) / decode_s : 0.0);
  return absl::OkStatus();
}

}  // namespace

Command AddGenerateCommand(CLI::App* parent) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = parent->add_subcommand("generate", "answer one prompt, streamed to stdout");
  AddModelOptions(command, &options->model);
  command->add_option("--prompt", options->prompt, "the text to go on from, or the question")
      ->option_text("TEXT");
  command->add_option("--prompt-file", options->prompt_file, "a file with the text; -: stdin")
      ->option_text("FILE");
  command
      ->add_option("--prompt-token-ids", options->prompt_token_ids,
                   "token ids instead of text, used as they are: 1,2,3")
      ->option_text("IDS");
  command->add_flag("--chat", options->chat, "put the prompt into the model's chat template");
  command->add_option("--system", options->system, "with --chat: the system message")
      ->option_text("TEXT");
  command->add_flag("--thinking", options->thinking,
                    "with --chat: reason first, for models that have the choice");
  engine::SamplingParams* sampling = &options->sampling;
  command->add_option("--max-tokens", sampling->max_tokens, "default: up to the context limit")
      ->check(CLI::Range(int64_t{1}, INT64_MAX))
      ->option_text("N");
  command->add_option("--min-tokens", sampling->min_tokens, "no stop token before so many tokens")
      ->option_text("N [0]");
  command->add_option("--temperature", sampling->temperature, "0: the most probable token")
      ->option_text("X [0]");
  command->add_option("--top-p", sampling->top_p, "1: off")->option_text("X [1]");
  command->add_option("--top-k", sampling->top_k, "0: off")->option_text("N [0]");
  command->add_option("--min-p", sampling->min_p, "0: off")->option_text("X [0]");
  command->add_option("--repetition-penalty", sampling->repetition_penalty, "1: off")
      ->option_text("X [1]");
  command->add_option("--presence-penalty", sampling->presence_penalty)->option_text("X [0]");
  command->add_option("--frequency-penalty", sampling->frequency_penalty)->option_text("X [0]");
  AddRepeatedOption(command, "--logit-bias", &options->logit_bias, "may be given several times")
      ->option_text("TOKEN_ID=BIAS");
  command->add_option("--seed", options->seed, "default: drawn anew")->option_text("N");
  AddRepeatedOption(command, "--stop", &options->stop,
                    "end before this text in the answer; may be given several times")
      ->option_text("TEXT");
  command->add_flag("--ignore-eos", options->ignore_eos, "go on past the end-of-sequence token");
  command
      ->add_option("--logprobs", sampling->num_logprobs,
                   "with --json: log-probabilities of each token and of the N best")
      ->check(CLI::Range(0, engine::kLogprobsMax))
      ->option_text("N");
  command->add_flag("--json", options->json, "one JSON object on stdout instead of streamed text");
  return [options] { return Generate(*options); };
}

}  // namespace sluice::cli
