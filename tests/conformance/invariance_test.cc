// What `numerics: exact` promises: how a prompt was cut, what else is in the batch, where the pages
// lie, how many threads there are and which instructions they use changes no bit of any result.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/ops/attention.h"
#include "tests/conformance/harness.h"
#include "tests/golden/golden.h"

namespace sluice::conformance {
namespace {

constexpr int kLengths[] = {130, 65, 64, 63, 2};

// The rows of one sequence, by position.
struct Trace {
  std::vector<std::vector<float>> hidden;     // after the last layer
  std::vector<std::vector<float>> logits;     // where a piece ended; empty elsewhere
  std::vector<std::vector<int32_t>> experts;  // of the last MoE layer
};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

template <typename T>
std::vector<T> RowOf(const std::vector<T>& matrix, size_t rows, size_t row) {
  const size_t width = matrix.size() / rows;
  return {matrix.begin() + row * width, matrix.begin() + (row + 1) * width};
}

class Sequences {
 public:
  Sequences(const Golden& golden, absl::Span<const int> lengths) {
    for (const int length : lengths) {
      const absl::Span<const int32_t> ids = golden.I32(absl::StrCat("prompt.", length, ".ids"));
      ids_.emplace_back(ids.begin(), ids.end());
    }
  }

  size_t count() const { return ids_.size(); }
  const std::vector<int32_t>& ids(size_t index) const { return ids_[index]; }
  int64_t length(size_t index) const { return static_cast<int64_t>(ids_[index].size()); }

 private:
  std::vector<std::vector<int32_t>> ids_;
};

// Runs one step and files its rows under their sequences; slot = index of the sequence.
void RunStep(Harness* harness, const std::vector<Piece>& pieces, std::vector<Trace>* traces) {
  const StepRecord record = harness->Step(pieces);
  size_t tokens = 0, row = 0;
  for (const Piece& piece : pieces) tokens += piece.count;
  for (size_t p = 0; p < pieces.size(); ++p) {
    Trace& trace = (*traces)[pieces[p].slot];
    for (int64_t i = 0; i < pieces[p].count; ++i, ++row) {
      const int64_t position = pieces[p].begin + i;
      trace.hidden[position] = RowOf(record.hidden.back(), tokens, row);
      trace.experts[position] = RowOf(record.experts.back(), tokens, row);
    }
    trace.logits[pieces[p].begin + pieces[p].count - 1] = RowOf(record.logits, pieces.size(), p);
  }
}

std::vector<Trace> EmptyTraces(const Sequences& sequences) {
  std::vector<Trace> traces(sequences.count());
  for (size_t i = 0; i < traces.size(); ++i) {
    traces[i].hidden.resize(sequences.length(i));
    traces[i].logits.resize(sequences.length(i));
    traces[i].experts.resize(sequences.length(i));
  }
  return traces;
}

// Each sequence alone, one token a step: what everything else is compared with.
std::vector<Trace> TokenByToken(Harness* harness, const Sequences& sequences) {
  std::vector<Trace> traces = EmptyTraces(sequences);
  for (size_t s = 0; s < sequences.count(); ++s) {
    const std::vector<int32_t> pages = FirstPages(sequences.length(s));
    for (int64_t i = 0; i < sequences.length(s); ++i) {
      RunStep(harness,
              {{.ids = sequences.ids(s),
                .pages = pages,
                .slot = static_cast<int32_t>(s),
                .begin = i,
                .count = 1}},
              &traces);
    }
  }
  return traces;
}

void ExpectSame(const std::vector<Trace>& got, const std::vector<Trace>& want) {
  for (size_t s = 0; s < want.size(); ++s) {
    for (size_t i = 0; i < want[s].hidden.size(); ++i) {
      ASSERT_TRUE(SameBits(got[s].hidden[i], want[s].hidden[i]))
          << "hidden state, sequence of " << want[s].hidden.size() << ", position " << i;
      ASSERT_EQ(got[s].experts[i], want[s].experts[i]) << "position " << i;
      ASSERT_TRUE(got[s].logits[i].empty() || SameBits(got[s].logits[i], want[s].logits[i]))
          << "logits, sequence of " << want[s].hidden.size() << ", position " << i;
    }
  }
}

// All sequences together: each step takes a random piece of each of a random choice of them, in
// random order, and their pages lie scattered over the cache.
std::vector<Trace> RunShuffled(Harness* harness, const Sequences& sequences, uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&random](int64_t n) { return static_cast<int64_t>(random() % n); };
  const engine::EngineOptions& options = harness->raw_engine()->options();
  std::vector<int32_t> free_pages(options.kv_pages);
  for (size_t i = 0; i < free_pages.size(); ++i) free_pages[i] = static_cast<int32_t>(i);
  std::shuffle(free_pages.begin(), free_pages.end(), random);
  std::vector<std::vector<int32_t>> pages(sequences.count());
  for (size_t s = 0; s < pages.size(); ++s) {
    const size_t count = (sequences.length(s) + kPageTokens - 1) / kPageTokens;
    pages[s].assign(free_pages.end() - count, free_pages.end());
    free_pages.resize(free_pages.size() - count);
  }

  std::vector<Trace> traces = EmptyTraces(sequences);
  std::vector<int64_t> done(sequences.count(), 0);
  std::vector<size_t> open(sequences.count());
  for (size_t s = 0; s < open.size(); ++s) open[s] = s;
  while (!open.empty()) {
    std::shuffle(open.begin(), open.end(), random);
    std::vector<Piece> pieces;
    int64_t room = options.step_tokens_max;
    const int64_t wanted = 1 + below(open.size());
    for (int64_t p = 0; p < wanted && room > 0; ++p) {
      const size_t s = open[p];
      const int64_t left = std::min(sequences.length(s) - done[s], room);
      const int64_t count = below(3) == 0 ? 1 : 1 + below(left);
      pieces.push_back({.ids = sequences.ids(s),
                        .pages = pages[s],
                        .slot = static_cast<int32_t>(s),
                        .begin = done[s],
                        .count = count});
      done[s] += count;
      room -= count;
    }
    RunStep(harness, pieces, &traces);
    open.erase(std::remove_if(open.begin(), open.end(),
                              [&](size_t s) { return done[s] == sequences.length(s); }),
               open.end());
  }
  return traces;
}

class InvarianceTest : public ::testing::TestWithParam<const char*> {
 protected:
  InvarianceTest()
      : golden_(Golden::Load(GetParam())),
        model_(MakeGoldenModel(GetParam(), golden_.seed())),
        sequences_(golden_, kLengths) {}

  static HarnessOptions Options(int threads) {
    HarnessOptions options;
    options.backend_options.threads = threads;
    return options;
  }

  const Golden golden_;
  const TestModel model_;
  const Sequences sequences_;
};

TEST_P(InvarianceTest, ChunksOfAnySize) {
  Harness harness(model_, Options(2));
  const std::vector<Trace> want = TokenByToken(&harness, sequences_);
  for (const int64_t size : {2, 31, 64, 65, 130}) {
    SCOPED_TRACE(absl::StrCat("chunks of ", size));
    std::vector<Trace> traces = EmptyTraces(sequences_);
    for (size_t s = 0; s < sequences_.count(); ++s) {
      const std::vector<int32_t> pages = FirstPages(sequences_.length(s));
      for (int64_t begin = 0; begin < sequences_.length(s); begin += size) {
        RunStep(&harness,
                {{.ids = sequences_.ids(s),
                  .pages = pages,
                  .slot = static_cast<int32_t>(s),
                  .begin = begin,
                  .count = std::min(size, sequences_.length(s) - begin)}},
                &traces);
      }
    }
    ExpectSame(traces, want);
  }
}

TEST_P(InvarianceTest, AnyBatchAnyPagesAnyThreads) {
  Harness alone(model_, Options(1));
  const std::vector<Trace> want = TokenByToken(&alone, sequences_);
  for (const int threads : {1, 2, 7}) {
    Harness harness(model_, Options(threads));
    for (uint32_t seed = 0; seed < 2; ++seed) {
      SCOPED_TRACE(absl::StrCat(threads, " threads, seed ", seed));
      ExpectSame(RunShuffled(&harness, sequences_, seed), want);
    }
  }
}

TEST_P(InvarianceTest, AnyInstructionSet) {
  const Sequences sequences(golden_, {65, 63, 2});  // generic code is slow
  HarnessOptions options = Options(2);
  options.backend_options.isa = CpuIsa::kGeneric;
  Harness generic(model_, options);
  const std::vector<Trace> want = RunShuffled(&generic, sequences, 0);
  for (int level = 1; level <= static_cast<int>(DetectCpuIsa()); ++level) {
    SCOPED_TRACE(absl::StrCat("instruction set level ", level));
    options.backend_options.isa = static_cast<CpuIsa>(level);
    Harness harness(model_, options);
    ExpectSame(RunShuffled(&harness, sequences, 0), want);
  }
}

// Steps that nobody looks into skip rows of the last layer that no token is sampled from.
TEST_P(InvarianceTest, UnobservedStepsGiveTheSame) {
  Harness harness(model_, Options(2));
  std::vector<std::vector<int32_t>> pages;
  std::vector<Piece> pieces;
  int32_t next_page = 0;
  pages.reserve(3);
  for (const size_t s : {1, 3, 4}) {
    pages.emplace_back();
    for (int64_t i = 0; i < sequences_.length(s); i += kPageTokens) {
      pages.back().push_back(next_page++);
    }
    pieces.push_back({.ids = sequences_.ids(s),
                      .pages = pages.back(),
                      .slot = static_cast<int32_t>(s),
                      .count = sequences_.length(s)});
  }
  const std::vector<engine::SampledToken> want = harness.Step(pieces).sampled;
  const std::vector<engine::SampledToken> got = harness.StepUnobserved(pieces);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].token_id, want[i].token_id);
    ASSERT_EQ(got[i].top_logprobs.size(), static_cast<size_t>(engine::kLogprobsMax));
    for (size_t j = 0; j < got[i].top_logprobs.size(); ++j) {
      EXPECT_EQ(got[i].top_logprobs[j].token_id, want[i].top_logprobs[j].token_id);
      EXPECT_EQ(got[i].top_logprobs[j].logprob, want[i].top_logprobs[j].logprob);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Geometries, InvarianceTest,
                         ::testing::Values("v3_grouped", "v3_grouped_fp8", "v2_softmax"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace sluice::conformance
