// For tests: a model whose KV row is a number that depends on every token so far, kept in pages as
// plans say. A plan that misplaces, shares, forgets or overwrites a page gives other tokens.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/ops/attention.h"
#include "services/engine/scheduler.h"

namespace sluice::engine {

inline constexpr int64_t kVocab = 97;

inline SchedulerOptions SmallOptions() {
  return {.slots_max = 4,
          .step_tokens_max = 100,
          .positions_max = 1000,
          .kv_pages = 40,
          .vocab_size = kVocab};
}

// The KV row of a token after the row before it (0 at the start).
inline uint64_t KvRow(uint64_t previous, int32_t token) {
  uint64_t z = previous * 0x9E3779B97F4A7C15 + static_cast<uint64_t>(token) + 1;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  return z ^ (z >> 31);
}

inline std::vector<uint64_t> KvRows(absl::Span<const int32_t> tokens) {
  std::vector<uint64_t> rows;
  for (const int32_t token : tokens) rows.push_back(KvRow(rows.empty() ? 0 : rows.back(), token));
  return rows;
}

inline int32_t TokenAfter(uint64_t row) { return static_cast<int32_t>(row % kVocab); }

inline Request MakeRequest(uint64_t id, int64_t prompt_length, int64_t max_tokens) {
  Request request{.id = id};
  for (int64_t i = 0; i < prompt_length; ++i) {
    request.prompt.push_back(static_cast<int32_t>((id * 31 + i * 7) % kVocab));
  }
  request.sampling.max_tokens = max_tokens;
  return request;
}

inline std::vector<int32_t> KnownTokens(const Request& request) {
  std::vector<int32_t> tokens = request.prompt;
  tokens.insert(tokens.end(), request.output.begin(), request.output.end());
  return tokens;
}

// What the model makes of the request, from its first new token to its last.
inline std::vector<int32_t> ExpectedTokens(const Request& request, int64_t positions_max) {
  std::vector<int32_t> made;
  uint64_t row = KvRows(KnownTokens(request)).back();
  const int64_t known = static_cast<int64_t>(request.prompt.size() + request.output.size());
  int64_t left = std::min(request.sampling.max_tokens - static_cast<int64_t>(request.output.size()),
                          positions_max - known);
  if (request.leg == Leg::kPrefill) left = 1;
  const std::vector<int32_t>& stops = request.sampling.stop_token_ids;
  for (; left > 0; --left) {
    made.push_back(TokenAfter(row));
    if (std::find(stops.begin(), stops.end(), made.back()) != stops.end()) break;
    row = KvRow(row, made.back());
  }
  return made;
}

// A plan with all that it points to.
class OwnedPlan {
 public:
  explicit OwnedPlan(const StepPlan& plan) : number_(plan.number) {
    for (const StepChunk& chunk : plan.chunks) {
      chunks_.push_back({chunk.slot,
                         chunk.first_position,
                         {chunk.tokens.begin(), chunk.tokens.end()},
                         {chunk.pages.begin(), chunk.pages.end()},
                         chunk.sampling != nullptr});
    }
  }

 private:
  friend class PagedModel;
  struct Chunk {
    int32_t slot;
    int64_t first_position;
    std::vector<int32_t> tokens;
    std::vector<int32_t> pages;
    bool samples;
  };
  uint64_t number_;
  std::vector<Chunk> chunks_;
};

class PagedModel {
 public:
  explicit PagedModel(const SchedulerOptions& options)
      : rows_(options.kv_pages * kPageTokens, 0),
        sampled_(options.slots_max, -1),
        options_(options) {}

  StepResult Run(const OwnedPlan& plan) {
    StepResult result{.number = plan.number_};
    size_t tokens = 0;
    std::vector<bool> slot_used(options_.slots_max, false);
    for (const OwnedPlan::Chunk& chunk : plan.chunks_) {
      EXPECT_FALSE(slot_used.at(chunk.slot)) << "two chunks for one slot";
      slot_used[chunk.slot] = true;
      tokens += chunk.tokens.size();
      int64_t position = chunk.first_position;
      for (const int32_t known : chunk.tokens) {
        const int32_t token = known == kSampledToken ? sampled_[chunk.slot] : known;
        EXPECT_GE(token, 0);
        const uint64_t before = position == 0 ? 0 : RowAt(chunk.pages, position - 1);
        RowAt(chunk.pages, position) = KvRow(before, token);
        ++position;
      }
      if (!chunk.samples) continue;
      sampled_[chunk.slot] = TokenAfter(RowAt(chunk.pages, position - 1));
      result.slots.push_back({chunk.slot, {{.token_id = sampled_[chunk.slot]}}});
    }
    EXPECT_LE(tokens, static_cast<size_t>(options_.step_tokens_max));
    return result;
  }
  StepResult Run(const StepPlan& plan) { return Run(OwnedPlan(plan)); }

  uint64_t& RowAt(absl::Span<const int32_t> pages, int64_t position) {
    return rows_.at(pages.at(position / kPageTokens) * kPageTokens + position % kPageTokens);
  }

  // Writes the KV that a reservation lacks, as a transport does.
  void Fill(const Reservation& reservation, absl::Span<const int32_t> tokens) {
    const std::vector<uint64_t> rows = KvRows(tokens);
    for (size_t i = reservation.first_page * kPageTokens; i < rows.size(); ++i) {
      RowAt(reservation.pages, i - reservation.first_page * kPageTokens) = rows[i];
    }
  }

 private:
  std::vector<uint64_t> rows_;
  std::vector<int32_t> sampled_;
  const SchedulerOptions options_;
};

struct Outcome {
  std::vector<int32_t> tokens;
  std::optional<FinishReason> finish;
  int64_t cached_tokens = 0;
};

// Drives a scheduler and a PagedModel as Generator does.
class Driver {
 public:
  explicit Driver(const SchedulerOptions& options) : scheduler(options), model(options) {}

  void Step() {
    while (const StepPlan* plan = scheduler.NextPlan()) {
      results_.push_back(model.Run(*plan));
      for (const uint64_t id : scheduler.TakeHandedBack()) handed_back.push_back(id);
    }
    for (const uint64_t id : scheduler.TakeHandedBack()) handed_back.push_back(id);
    if (results_.empty()) return;
    std::vector<TokenEvent> events;
    scheduler.OnResult(results_.front(), &events);
    results_.pop_front();
    for (const TokenEvent& event : events) {
      Outcome& outcome = outcomes[event.request_id];
      EXPECT_FALSE(outcome.finish.has_value()) << "a token after the last one";
      outcome.tokens.push_back(event.token.token_id);
      outcome.finish = event.finish;
      outcome.cached_tokens = event.cached_tokens;
    }
  }
  // Until nothing is known and in flight, and every page has come back.
  void RunAll() {
    for (int steps = 0; !scheduler.idle(); ++steps) {
      ASSERT_LT(steps, 100000) << "no progress";
      Step();
    }
    EXPECT_EQ(scheduler.kv_pool().num_free(), scheduler.kv_pool().num_pages());
  }

  Scheduler scheduler;
  PagedModel model;
  std::map<uint64_t, Outcome> outcomes;
  std::vector<uint64_t> handed_back;

 private:
  std::deque<StepResult> results_;
};

}  // namespace sluice::engine
