#include "tools/sluice/eval_set.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice::cli {
namespace {

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

}  // namespace

absl::StatusOr<std::vector<Problem>> ReadProblems(const std::string& path) {
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

std::vector<Problem> Spread(std::vector<Problem> problems, size_t limit) {
  if (problems.size() <= limit) return problems;
  std::mt19937_64 random(1);
  // Own and not std::shuffle: the same draw with every standard library.
  const auto shuffle = [&](auto& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random() % i]);
  };
  std::map<std::string, std::vector<size_t>> by_task;
  for (size_t i = 0; i < problems.size(); ++i) by_task[problems[i].task].push_back(i);
  std::vector<std::vector<size_t>> tasks;
  for (auto& [_, indices] : by_task) {
    shuffle(indices);
    tasks.push_back(std::move(indices));
  }
  shuffle(tasks);  // so that those with one more are not always the first
  std::vector<size_t> chosen;
  for (size_t round = 0; chosen.size() < limit; ++round) {
    for (const std::vector<size_t>& indices : tasks) {
      if (round < indices.size() && chosen.size() < limit) chosen.push_back(indices[round]);
    }
  }
  std::sort(chosen.begin(), chosen.end());
  std::vector<Problem> spread;
  for (const size_t i : chosen) spread.push_back(std::move(problems[i]));
  return spread;
}

void Tally::Add(const Problem& problem, const std::string& content, bool stopped,
                int64_t num_tokens) {
  const bool right = stopped && absl::StripAsciiWhitespace(content) == problem.answer;
  for (Score* score : {&all_, &tasks_[problem.task]}) {
    ++score->total;
    score->right += right ? 1 : 0;
  }
  if (!right) {
    failures_.push_back({{"id", problem.id}, {"wanted", problem.answer}, {"got", content}});
  }
  num_tokens_ += num_tokens;
}

void Tally::ShowProgress() {
  if (isatty(STDERR_FILENO) != 1 || all_.total == shown_) return;
  shown_ = all_.total;
  const bool last = static_cast<size_t>(shown_) == total_;
  std::fprintf(stderr, "\r%ld of %zu answered%s", static_cast<long>(shown_), total_,
               last ? "\n" : "");
}

void Tally::Print(bool json) const {
  if (json) {
    PrintJson();
    return;
  }
  PrintTable();
  for (const nlohmann::json& failure : failures_) {
    std::fprintf(
        stderr, "%s: wanted %s, got %s\n", failure["id"].get<std::string>().c_str(),
        failure["wanted"].dump().c_str(),
        failure["got"].dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  }
}

void Tally::PrintTable() const {
  std::printf("%-16s %7s %7s %9s\n", "task", "right", "of", "accuracy");
  for (const auto& [task, score] : tasks_) {
    std::printf("%-16s %7ld %7ld %8.2f%%\n", task.c_str(), static_cast<long>(score.right),
                static_cast<long>(score.total), 100 * score.accuracy());
  }
  std::printf("%-16s %7ld %7ld %8.2f%%\n", "all", static_cast<long>(all_.right),
              static_cast<long>(all_.total), 100 * all_.accuracy());
}

void Tally::PrintJson() const {
  nlohmann::json json = {
      {"right", all_.right}, {"total", all_.total}, {"accuracy", all_.accuracy()}};
  for (const auto& [task, score] : tasks_) {
    json["tasks"][task] = {
        {"right", score.right}, {"total", score.total}, {"accuracy", score.accuracy()}};
  }
  json["failures"] = failures_;
  std::puts(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

}  // namespace sluice::cli
