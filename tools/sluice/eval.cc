// sluice eval: how many problems of an evaluation set a model answers right, per task.

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/engine/generator.h"
#include "services/model/reply.h"
#include "tools/sluice/commands.h"
#include "tools/sluice/model_options.h"

namespace sluice::cli {
namespace {

struct EvalOptions {
  ModelOptions model;
  std::string data;
  int64_t batch = 16;
  int64_t limit = 0;
  int64_t max_tokens = 1024;
  bool json = false;
};

struct Problem {
  std::string id, task, answer;
  std::vector<model::ChatMessage> messages;
};

struct TaskScore {
  int64_t right = 0;
  int64_t total = 0;
  double accuracy() const { return total == 0 ? 0.0 : double(right) / double(total); }
};

struct Running {
  const Problem* problem;
  model::Reply reply;
  std::string content;
};

absl::StatusOr<Problem> ParseProblem(const std::string& line) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  const auto text = [](const nlohmann::json& object,
                       const char* key) -> absl::StatusOr<std::string> {
    if (!object.is_object() || !object.contains(key) || !object[key].is_string()) {
      return absl::InvalidArgumentError(absl::StrCat("no text field \"", key, "\""));
    }
    return object[key].get<std::string>();
  };
  if (!json.is_object()) return absl::InvalidArgumentError("not a JSON object");
  Problem problem;
  SLUICE_ASSIGN_OR_RETURN(problem.id, text(json, "id"));
  SLUICE_ASSIGN_OR_RETURN(problem.task, text(json, "task"));
  SLUICE_ASSIGN_OR_RETURN(problem.answer, text(json, "answer"));
  if (!json.contains("messages") || !json["messages"].is_array()) {
    return absl::InvalidArgumentError("no list \"messages\"");
  }
  for (const nlohmann::json& message : json["messages"]) {
    model::ChatMessage parsed;
    SLUICE_ASSIGN_OR_RETURN(parsed.role, text(message, "role"));
    SLUICE_ASSIGN_OR_RETURN(parsed.content, text(message, "content"));
    problem.messages.push_back(std::move(parsed));
  }
  return problem;
}

absl::StatusOr<std::vector<Problem>> ReadProblems(const std::string& path, int64_t limit) {
  std::ifstream file(path);
  if (!file) {
    return absl::NotFoundError(
        absl::StrCat(path,
                     " cannot be read; give --data FILE with one problem a line: "
                     "{\"id\", \"task\", \"messages\", \"answer\"}"));
  }
  std::vector<Problem> problems;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (limit > 0 && static_cast<int64_t>(problems.size()) == limit) break;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    absl::StatusOr<Problem> problem = ParseProblem(line);
    if (!problem.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", number, ": ", problem.status().message()));
    }
    problems.push_back(*std::move(problem));
  }
  if (problems.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " has no problems"));
  return problems;
}

// Answers all problems, `batch` at a time.
class Evaluation {
 public:
  Evaluation(const EvalOptions& options, const LoadedModel& model,
             const model::ChatTemplate& chat_template, engine::Engine* engine)
      : options_(options), model_(model), template_(chat_template), generator_(engine) {}

  absl::Status Run(const std::vector<Problem>& problems) {
    total_ = problems.size();
    for (const Problem& problem : problems) {
      if (absl::Status status = Start(problem); !status.ok()) {
        return absl::Status(status.code(),
                            absl::StrCat("problem ", problem.id, ": ", status.message()));
      }
    }
    std::vector<engine::TokenEvent> events;
    while (!generator_.idle()) {
      events.clear();
      SLUICE_RETURN_IF_ERROR(generator_.Step(&events));
      for (const engine::TokenEvent& event : events) {
        if (event.finish == engine::FinishReason::kDamaged)
          return DamagedLogits(options_.model.dir);
        OnToken(event);
      }
      ShowProgress();
    }
    return absl::OkStatus();
  }

  const std::map<std::string, TaskScore>& scores() const { return scores_; }
  int64_t num_tokens() const { return num_tokens_; }
  const nlohmann::json& failures() const { return failures_; }

 private:
  absl::Status Start(const Problem& problem) {
    SLUICE_ASSIGN_OR_RETURN(model::EncodedPrompt prompt,
                            template_.Encode(*model_.tokenizer, problem.messages, {}));
    SLUICE_ASSIGN_OR_RETURN(
        model::Reply reply,
        model::Reply::Create(model_.tokenizer.get(),
                             {.in_thinking = prompt.in_thinking, .split_reasoning = true}));
    const uint64_t id = next_id_++;
    running_.emplace(id, Running{.problem = &problem, .reply = std::move(reply), .content = {}});
    return generator_.Add({.id = id,
                           .prompt = std::move(prompt.ids),
                           .output = {},
                           .sampling = {.temperature = 0.0f,
                                        .max_tokens = options_.max_tokens,
                                        .stop_token_ids = model_.config.eos_token_ids}});
  }

  void OnToken(const engine::TokenEvent& event) {
    Running& running = running_.at(event.request_id);
    ++num_tokens_;
    if (event.finish != engine::FinishReason::kStop) {
      running.content += running.reply.Feed(event.token.token_id).content;
    }
    if (!event.finish.has_value()) return;
    running.content += running.reply.Finish().content;
    const Problem& problem = *running.problem;
    const bool right = event.finish == engine::FinishReason::kStop &&
                       absl::StripAsciiWhitespace(running.content) == problem.answer;
    TaskScore& score = scores_[problem.task];
    ++score.total;
    score.right += right ? 1 : 0;
    if (!right) {
      failures_.push_back(
          {{"id", problem.id}, {"wanted", problem.answer}, {"got", running.content}});
    }
    running_.erase(event.request_id);
  }

  void ShowProgress() {
    if (isatty(STDERR_FILENO) != 1) return;
    const size_t done = total_ - running_.size();
    if (done == shown_) return;
    shown_ = done;
    std::fprintf(stderr, "\r%zu of %zu answered", done, total_);
    if (done == total_) std::fprintf(stderr, "\n");
  }

  const EvalOptions& options_;
  const LoadedModel& model_;
  const model::ChatTemplate& template_;
  engine::Generator generator_;
  std::map<uint64_t, Running> running_;
  std::map<std::string, TaskScore> scores_;
  nlohmann::json failures_ = nlohmann::json::array();
  uint64_t next_id_ = 1;
  size_t total_ = 0;
  size_t shown_ = 0;
  int64_t num_tokens_ = 0;
};

void PrintTable(const std::map<std::string, TaskScore>& scores, const TaskScore& all) {
  std::printf("%-16s %7s %7s %9s\n", "task", "right", "of", "accuracy");
  for (const auto& [task, score] : scores) {
    std::printf("%-16s %7ld %7ld %8.2f%%\n", task.c_str(), static_cast<long>(score.right),
                static_cast<long>(score.total), 100 * score.accuracy());
  }
  std::printf("%-16s %7ld %7ld %8.2f%%\n", "all", static_cast<long>(all.right),
              static_cast<long>(all.total), 100 * all.accuracy());
}

void PrintJson(const std::map<std::string, TaskScore>& scores, const TaskScore& all,
               const nlohmann::json& failures) {
  nlohmann::json json = {{"right", all.right}, {"total", all.total}, {"accuracy", all.accuracy()}};
  for (const auto& [task, score] : scores) {
    json["tasks"][task] = {
        {"right", score.right}, {"total", score.total}, {"accuracy", score.accuracy()}};
  }
  json["failures"] = failures;
  std::puts(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

absl::Status Eval(const EvalOptions& options) {
  const std::string path = options.data.empty()
                               ? (std::filesystem::path(options.model.dir) / "eval.jsonl").string()
                               : options.data;
  SLUICE_ASSIGN_OR_RETURN(const std::vector<Problem> problems, ReadProblems(path, options.limit));
  SLUICE_ASSIGN_OR_RETURN(LoadedModel model, LoadModel(options.model));
  SLUICE_RETURN_IF_ERROR(NeedTokenizer(model, options.model));
  SLUICE_ASSIGN_OR_RETURN(
      const model::ChatTemplate chat_template,
      model::ChatTemplate::Create(*model.tokenizer, options.model.chat_template));
  engine::EngineOptions engine_options = model.engine_options;
  engine_options.slots_max = options.batch;
  engine_options.step_tokens_max = std::max<int64_t>(512, options.batch);
  const int64_t pages_per_sequence = PagesFor(model.config.max_position_embeddings);
  // Room for every sequence to reach 2,048 tokens; longer ones share, and wait where they must.
  engine_options.kv_pages =
      std::max(pages_per_sequence, options.batch * std::min<int64_t>(pages_per_sequence, 32));
  SLUICE_ASSIGN_OR_RETURN(
      const std::unique_ptr<engine::Engine> engine,
      engine::Engine::Create(model.config, model.weights, model.backend.get(), engine_options));

  const auto start = std::chrono::steady_clock::now();
  Evaluation evaluation(options, model, chat_template, engine.get());
  SLUICE_RETURN_IF_ERROR(evaluation.Run(problems));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  TaskScore all;
  for (const auto& [task, score] : evaluation.scores()) {
    all.right += score.right;
    all.total += score.total;
  }
  if (options.json) {
    PrintJson(evaluation.scores(), all, evaluation.failures());
  } else {
    PrintTable(evaluation.scores(), all);
    for (const nlohmann::json& failure : evaluation.failures()) {
      std::fprintf(
          stderr, "%s: wanted %s, got %s\n", failure["id"].get<std::string>().c_str(),
          failure["wanted"].dump().c_str(),
          failure["got"].dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    }
  }
  std::fprintf(stderr, "%ld problems, %ld tokens in %.1f s (%.0f tokens/s)\n",
               static_cast<long>(all.total), static_cast<long>(evaluation.num_tokens()), seconds,
               evaluation.num_tokens() / seconds);
  return absl::OkStatus();
}

}  // namespace

Command AddEvalCommand(CLI::App* parent) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command =
      parent->add_subcommand("eval", "answer an evaluation set greedily; accuracy per task");
  AddModelOptions(command, &options->model);
  command->add_option("--data", options->data, "problems, one JSON object a line")
      ->option_text("FILE [DIR/eval.jsonl]");
  command->add_option("--batch", options->batch, "problems in work at the same time")
      ->check(CLI::Range(1, 1024))
      ->option_text("N [16]");
  command->add_option("--limit", options->limit, "only the first N problems; 0: all")
      ->check(CLI::Range(0, 1 << 30))
      ->option_text("N [0]");
  command->add_option("--max-tokens", options->max_tokens, "a longer reply counts as wrong")
      ->check(CLI::Range(1, 1 << 20))
      ->option_text("N [1024]");
  command->add_flag("--json", options->json, "one JSON object on stdout instead of a table");
  return [options] { return Eval(*options); };
}

}  // namespace sluice::cli
