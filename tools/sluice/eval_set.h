// Problems of an evaluation set, and how many of them were answered right.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "services/model/chat_template.h"

namespace sluice::cli {

struct Problem {
  std::string id, task, answer;
  std::vector<model::ChatMessage> messages;
};

// One JSON object a line: {"id", "task", "messages", "answer"}.
absl::StatusOr<std::vector<Problem>> ReadProblems(const std::string& path);

// `limit` of them, as many of each task as of any other, or one more; drawn at random with a fixed
// seed, so always the same ones; in the order in which they stand. All, when there are no more.
std::vector<Problem> Spread(std::vector<Problem> problems, size_t limit);

// One thread at a time.
class Tally {
 public:
  explicit Tally(size_t total) : total_(total) {}

  // `stopped`: the reply ended by itself. A reply that did not is wrong whatever it says.
  void Add(const Problem& problem, const std::string& content, bool stopped, int64_t num_tokens);

  // On a terminal: how many are done, on one line of stderr.
  void ShowProgress();
  // The result: a table on stdout with the wrong answers on stderr, or one JSON object on stdout.
  void Print(bool json) const;

  int64_t answered() const { return all_.total; }
  int64_t num_tokens() const { return num_tokens_; }

 private:
  struct Score {
    int64_t right = 0;
    int64_t total = 0;
    double accuracy() const { return total == 0 ? 0.0 : double(right) / double(total); }
  };
  void PrintTable() const;
  void PrintJson() const;

  const size_t total_;
  Score all_;
  std::map<std::string, Score> tasks_;
  nlohmann::json failures_ = nlohmann::json::array();
  int64_t num_tokens_ = 0;
  int64_t shown_ = 0;
};

}  // namespace sluice::cli
