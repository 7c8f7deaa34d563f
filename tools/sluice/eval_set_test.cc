#include "tools/sluice/eval_set.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace sluice::cli {
namespace {

// Tasks one after the other, as evaluation sets have them; the i-th of `counts` problems.
std::vector<Problem> Problems(const std::vector<int>& counts) {
  std::vector<Problem> problems;
  for (size_t task = 0; task < counts.size(); ++task) {
    for (int i = 0; i < counts[task]; ++i) {
      Problem problem;
      problem.task = absl::StrCat("task", task);
      problem.id = absl::StrCat(problems.size());
      problems.push_back(problem);
    }
  }
  return problems;
}

std::map<std::string, int> CountTasks(const std::vector<Problem>& problems) {
  std::map<std::string, int> counts;
  for (const Problem& problem : problems) ++counts[problem.task];
  return counts;
}

TEST(SpreadTest, EveryTaskHasItsShare) {
  const size_t tasks = 5;
  const std::vector<Problem> all = Problems(std::vector<int>(tasks, 30));
  for (const size_t limit : {size_t{1}, tasks - 1, tasks, tasks + 1, size_t{77}, all.size() - 1}) {
    SCOPED_TRACE(limit);
    const std::vector<Problem> spread = Spread(all, limit);
    EXPECT_EQ(spread.size(), limit);
    const auto counts = CountTasks(spread);
    EXPECT_EQ(counts.size(), std::min(limit, tasks));
    for (const auto& [task, count] : counts) {
      EXPECT_GE(count, static_cast<int>(limit / tasks)) << task;
      EXPECT_LE(count, static_cast<int>((limit + tasks - 1) / tasks)) << task;
    }
    EXPECT_TRUE(std::is_sorted(
        spread.begin(), spread.end(),
        [](const Problem& a, const Problem& b) { return std::stoi(a.id) < std::stoi(b.id); }));
  }
}

TEST(SpreadTest, WhatASmallTaskLacksComesFromTheOthers) {
  const auto counts = CountTasks(Spread(Problems({1, 30, 30}), 21));
  EXPECT_EQ(counts.at("task0"), 1);
  EXPECT_EQ(counts.at("task1"), 10);
  EXPECT_EQ(counts.at("task2"), 10);
}

TEST(SpreadTest, DrawsTheSameEachTimeAndNotTheFirst) {
  const std::vector<Problem> all = Problems({30, 30});
  std::vector<std::string> ids[2];
  for (auto& list : ids) {
    for (const Problem& problem : Spread(all, 6)) list.push_back(problem.id);
  }
  EXPECT_EQ(ids[0], ids[1]);
  EXPECT_NE(ids[0], (std::vector<std::string>{"0", "1", "2", "30", "31", "32"}));
}

TEST(SpreadTest, AllWhenThereAreNoMore) {
  EXPECT_EQ(Spread(Problems({2, 3}), 5).size(), 5u);
  EXPECT_EQ(Spread(Problems({2, 3}), 100).size(), 5u);
}

}  // namespace
}  // namespace sluice::cli
