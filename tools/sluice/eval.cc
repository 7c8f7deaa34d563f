// sluice eval: how many problems of an evaluation set a model answers right, per task.

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/program.h"
#include "services/engine/generator.h"
#include "services/model/reply.h"
#include "tools/sluice/commands.h"
#include "tools/sluice/eval_endpoint.h"
#include "tools/sluice/eval_set.h"
#include "tools/sluice/http_client.h"
#include "tools/sluice/model_options.h"

namespace sluice::cli {
namespace {

struct EvalOptions {
  ModelOptions model;
  std::string endpoint, api_key, ca, served_model;
  std::string data;
  std::optional<int64_t> batch;
  int64_t limit = 0;
  int64_t max_tokens = 1024;
  bool json = false;
};

struct Running {
  const Problem* problem;
  model::Reply reply;
  std::string content;
  int64_t num_tokens = 0;
};

// Answers all problems in this process, a batch at a time.
class Evaluation {
 public:
  Evaluation(const EvalOptions& options, const model::ModelConfig& config,
             const model::Tokenizer& tokenizer, const model::ChatTemplate& chat_template,
             engine::Engine* engine, Tally* tally)
      : options_(options),
        config_(config),
        tokenizer_(tokenizer),
        template_(chat_template),
        generator_(engine),
        tally_(*tally) {}

  absl::Status Run(const std::vector<Problem>& problems) {
    for (const Problem& problem : problems) {
      if (absl::Status status = Start(problem); !status.ok()) {
        return absl::Status(status.code(),
                            absl::StrCat("problem ", problem.id, ": ", status.message()));
      }
    }
    std::vector<engine::TokenEvent> events;
    while (!generator_.idle()) {
      events.clear();
      const absl::Status status = generator_.Step(&events);
      EndIfStuck(status);
      SLUICE_RETURN_IF_ERROR(status);
      for (const engine::TokenEvent& event : events) {
        if (event.finish == engine::FinishReason::kDamaged)
          return DamagedLogits(options_.model.dir);
        OnToken(event);
      }
      tally_.ShowProgress();
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Start(const Problem& problem) {
    SLUICE_ASSIGN_OR_RETURN(model::EncodedPrompt prompt,
                            template_.Encode(tokenizer_, problem.messages, {}));
    SLUICE_ASSIGN_OR_RETURN(model::Reply reply,
                            model::Reply::Create(&tokenizer_, {.in_thinking = prompt.in_thinking,
                                                               .split_reasoning = true}));
    const uint64_t id = next_id_++;
    running_.emplace(id, Running{.problem = &problem, .reply = std::move(reply), .content = {}});
    return generator_.Add({.id = id,
                           .prompt = std::move(prompt.ids),
                           .output = {},
                           .sampling = {.temperature = 0.0f,
                                        .max_tokens = options_.max_tokens,
                                        .stop_token_ids = config_.eos_token_ids}});
  }

  void OnToken(const engine::TokenEvent& event) {
    Running& running = running_.at(event.request_id);
    ++running.num_tokens;
    if (event.finish != engine::FinishReason::kStop) {
      running.content += running.reply.Feed(event.token.token_id).content;
    }
    if (!event.finish.has_value()) return;
    running.content += running.reply.Finish().content;
    tally_.Add(*running.problem, running.content, event.finish == engine::FinishReason::kStop,
               running.num_tokens);
    running_.erase(event.request_id);
  }

  const EvalOptions& options_;
  const model::ModelConfig& config_;
  const model::Tokenizer& tokenizer_;
  const model::ChatTemplate& template_;
  engine::Generator generator_;
  std::map<uint64_t, Running> running_;
  uint64_t next_id_ = 1;
  Tally& tally_;
};

absl::Status EvalHere(const EvalOptions& options, const std::vector<Problem>& problems,
                      Tally* tally) {
  const int64_t batch = options.batch.value_or(16);
  SLUICE_ASSIGN_OR_RETURN(const TokenizerPtr tokenizer, LoadTokenizer(options.model));
  SLUICE_RETURN_IF_ERROR(NeedTokenizer(tokenizer, options.model));
  SLUICE_ASSIGN_OR_RETURN(const model::ChatTemplate chat_template,
                          MakeChatTemplate(*tokenizer, options.model));
  SLUICE_ASSIGN_OR_RETURN(const instance::LoadedModel model, LoadModel(options.model));
  engine::EngineOptions engine_options = model.engine_options;
  engine_options.slots_max = batch;
  engine_options.step_tokens_max = std::max<int64_t>(512, batch);
  const int64_t pages_per_sequence = PagesFor(model.config.max_position_embeddings);
  // Room for every sequence to reach 2,048 tokens; longer ones share, and wait where they must.
  engine_options.kv_pages =
      std::max(pages_per_sequence, batch * std::min<int64_t>(pages_per_sequence, 32));
  SLUICE_ASSIGN_OR_RETURN(
      const std::unique_ptr<engine::Engine> engine,
      engine::Engine::Create(model.config, model.weights, model.backend.get(), engine_options));
  return Evaluation(options, model.config, *tokenizer, chat_template, engine.get(), tally)
      .Run(problems);
}

absl::Status EvalThere(const EvalOptions& options, const std::vector<Problem>& problems,
                       Tally* tally) {
  SLUICE_ASSIGN_OR_RETURN(const HttpClient client,
                          HttpClient::Create(options.endpoint, options.api_key, options.ca));
  std::string name = options.served_model;
  if (name.empty()) {
    SLUICE_ASSIGN_OR_RETURN(name, FirstModel(client));
  }
  return EvalOverEndpoint(client,
                          {.model = name,
                           .in_flight = static_cast<int>(options.batch.value_or(64)),
                           .max_tokens = options.max_tokens},
                          problems, tally);
}

absl::Status Eval(const EvalOptions& options) {
  if (options.model.dir.empty() && (options.endpoint.empty() || options.data.empty())) {
    return WithExitCode(
        absl::InvalidArgumentError(
            absl::StrCat("eval: ",
                         options.endpoint.empty()
                             ? "--model DIR is needed, or --endpoint URL"
                             : "--data FILE is needed, or --model DIR, whose eval.jsonl is taken",
                         "; see sluice eval --help")),
        kExitUsage);
  }
  const std::string path = options.data.empty()
                               ? (std::filesystem::path(options.model.dir) / "eval.jsonl").string()
                               : options.data;
  SLUICE_ASSIGN_OR_RETURN(std::vector<Problem> problems, ReadProblems(path));
  if (options.limit > 0) problems = Spread(std::move(problems), static_cast<size_t>(options.limit));
  Tally tally(problems.size());
  const auto start = std::chrono::steady_clock::now();
  SLUICE_RETURN_IF_ERROR(options.endpoint.empty() ? EvalHere(options, problems, &tally)
                                                  : EvalThere(options, problems, &tally));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  tally.Print(options.json);
  std::fprintf(stderr, "%ld problems, %ld tokens in %.1f s (%.0f tokens/s)\n",
               static_cast<long>(tally.answered()), static_cast<long>(tally.num_tokens()), seconds,
               static_cast<double>(tally.num_tokens()) / seconds);
  return absl::OkStatus();
}

}  // namespace

Command AddEvalCommand(CLI::App* parent) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command =
      parent->add_subcommand("eval", "answer an evaluation set greedily; accuracy per task");
  AddModelOptions(command, &options->model);
  command->get_option("--model")->required(false)->option_text("DIR");
  command
      ->add_option("--endpoint", options->endpoint,
                   "ask a running cluster (http://127.0.0.1:8000) instead of loading a model")
      ->option_text("URL");
  command
      ->add_option("--served-model", options->served_model, "with --endpoint: the name to ask for")
      ->option_text("NAME [the first it offers]");
  command->add_option("--api-key", options->api_key, "with --endpoint")
      ->envname("SLUICE_API_KEY")
      ->option_text("KEY [$SLUICE_API_KEY]");
  command->add_option("--ca", options->ca, "with an https endpoint: who signs its certificate")
      ->envname("SLUICE_CA")
      ->option_text("FILE [$SLUICE_CA or whom the system trusts]");
  command->add_option("--data", options->data, "problems, one JSON object a line")
      ->option_text("FILE [DIR/eval.jsonl]");
  command->add_option("--batch", options->batch, "problems in work at the same time")
      ->check(CLI::Range(1, 1024))
      ->option_text("N [16; with --endpoint 64]");
  command->add_option("--limit", options->limit, "only N problems, spread over the tasks; 0: all")
      ->check(CLI::Range(0, 1 << 30))
      ->option_text("N [0]");
  command->add_option("--max-tokens", options->max_tokens, "a longer reply counts as wrong")
      ->check(CLI::Range(1, 1 << 20))
      ->option_text("N [1024]");
  command->add_flag("--json", options->json, "one JSON object on stdout instead of a table");
  return [options] { return Eval(*options); };
}

}  // namespace sluice::cli
