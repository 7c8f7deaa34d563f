#include "services/router/placement.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace sluice::router {
namespace {

using sluice::v1::ROLE_DECODE;
using sluice::v1::ROLE_MIXED;
using sluice::v1::ROLE_PREFILL;

Candidate Make(sluice::v1::Role role) {
  return {.role = role,
          .kv_layout = "layout",
          .slots = 8,
          .positions = 4096,
          .kv_pages = 100,
          .kv_pages_free = 100,
          .step_tokens = 512,
          .tokens_per_second = 1000};
}

Candidate With(Candidate c, void (*change)(Candidate&)) {
  change(c);
  return c;
}

const Candidate kP = Make(ROLE_PREFILL);
const Candidate kD = Make(ROLE_DECODE);
const Candidate kM = Make(ROLE_MIXED);

TEST(PlacementTest, Chooses) {
  constexpr auto kPlaced = PlacementVerdict::kPlaced;
  constexpr auto kWait = PlacementVerdict::kWait;
  constexpr auto kNone = PlacementVerdict::kNone;
  const struct {
    std::string name;
    std::vector<Candidate> candidates;
    PlacementVerdict verdict;
    int prefill = -1;
    int decode = -1;
    PlacementNeed need = {.tokens = 640, .tokens_max = 700};
  } cases[] = {
      {"nobody", {}, kNone},
      {"prefills alone", {kP, kP}, kNone},
      {"decodes alone: prompts are not computed there", {kD, kD}, kNone},
      {"a pair", {kP, kD}, kPlaced, 0, 1},
      {"a mixed instance", {kM}, kPlaced, 0, 0},
      {"of equals the one with fewest placements",
       {With(kP, [](Candidate& c) { c.placements = 3; }), kP,
        With(kD, [](Candidate& c) { c.placements = 1; }), kD},
       kPlaced,
       1,
       3},
      {"steps as short as its class wants",
       {kP, With(kD, [](Candidate& c) { c.requests = 1, c.step_seconds = 0.2; }),
        With(kD, [](Candidate& c) { c.requests = 6, c.step_seconds = 0.05; })},
       kPlaced,
       0,
       2,
       {.tokens = 640, .tokens_max = 700, .step_seconds_max = 0.1}},
      {"an idle decode, whatever its last steps took",
       {kP, With(kD, [](Candidate& c) { c.step_seconds = 0.2; }),
        With(kD, [](Candidate& c) { c.requests = 6, c.step_seconds = 0.05; })},
       kPlaced,
       0,
       1,
       {.tokens = 640, .tokens_max = 700, .step_seconds_max = 0.1}},
      {"longer steps, when there are no others",
       {kP, With(kD, [](Candidate& c) { c.requests = 1, c.step_seconds = 0.2; })},
       kPlaced,
       0,
       1,
       {.tokens = 640, .tokens_max = 700, .step_seconds_max = 0.1}},
      {"the shorter queue",
       {With(kP, [](Candidate& c) { c.waiting_tokens = 400; }), kP, kD},
       kPlaced,
       1,
       2},
      {"the longer queue of a faster prefill",
       {With(kP, [](Candidate& c) { c.waiting_tokens = 400, c.tokens_per_second = 10'000; }), kP,
        kD},
       kPlaced,
       0,
       2},
      {"a prefix is worth its computation, not more",
       {With(kP, [](Candidate& c) { c.waiting_tokens = 400, c.cached_pages = 9; }), kP, kD},
       kPlaced,
       0,
       2},
      {"a prefix behind a long queue is not",
       {With(kP, [](Candidate& c) { c.waiting_tokens = 500, c.cached_pages = 5; }), kP, kD},
       kPlaced,
       1,
       2},
      {"the decode that has the prefix",
       {kP, kD, With(kD, [](Candidate& c) { c.cached_pages = 9; })},
       kPlaced,
       0,
       2},
      {"the emptier decode",
       {kP, With(kD, [](Candidate& c) { c.requests = 4; }), kD},
       kPlaced,
       0,
       2},
      {"the decode with more free pages",
       {kP, With(kD, [](Candidate& c) { c.kv_pages_free = 20; }), kD},
       kPlaced,
       0,
       2},
      {"layouts are not mixed", {kP, With(kD, [](Candidate& c) { c.kv_layout = "other"; })}, kNone},
      {"the cheapest pair of one layout, not of two",
       {With(kP, [](Candidate& c) { c.kv_layout = "other"; }),
        With(kP, [](Candidate& c) { c.waiting_tokens = 99; }), kD,
        With(kD, [](Candidate& c) { c.kv_layout = "other", c.requests = 7; })},
       kPlaced,
       1,
       2},
      {"a decode without a slot is waited for",
       {kP, With(kD, [](Candidate& c) { c.requests = 8; })},
       kWait,
       0,
       1},
      {"the last slot", {kP, With(kD, [](Candidate& c) { c.requests = 7; })}, kPlaced, 0, 1},
      {"the last request that may wait for a slot of a mixed instance",
       {With(kM, [](Candidate& c) { c.requests = 9; })},
       kPlaced,
       0,
       0},
      {"a mixed instance where enough wait",
       {With(kM, [](Candidate& c) { c.requests = 10; })},
       kWait,
       0,
       0},
      {"a decode without pages: 640 tokens and the next need 11",
       {kP, With(kD, [](Candidate& c) { c.kv_pages_free = 10; })},
       kWait,
       0,
       1},
      {"a decode with just enough pages",
       {kP, With(kD, [](Candidate& c) { c.kv_pages_free = 11; })},
       kPlaced,
       0,
       1},
      {"cached pages need not be free",
       {kP, With(kD, [](Candidate& c) { c.kv_pages_free = 1, c.cached_pages = 10; })},
       kPlaced,
       0,
       1},
      {"a prefill with a second of work is waited for",
       {With(kP, [](Candidate& c) { c.waiting_tokens = 1001; }), kD},
       kWait,
       0,
       1},
      {"a slow prefill is kept busy with one step",
       {With(kP, [](Candidate& c) { c.waiting_tokens = 512, c.tokens_per_second = 1; }), kD},
       kPlaced,
       0,
       1},
      {"an instance that refused is waited for",
       {kP, With(kD, [](Candidate& c) { c.full = true; })},
       kWait,
       0,
       1},
      {"whoever failed comes last",
       {With(kP, [](Candidate& c) { c.failed_before = true; }),
        With(kP, [](Candidate& c) { c.waiting_tokens = 900; }), kD},
       kPlaced,
       1,
       2},
      {"a full instance is waited for rather than one that failed",
       {With(kP, [](Candidate& c) { c.failed_before = true; }),
        With(kP, [](Candidate& c) { c.full = true; }), kD},
       kWait,
       1,
       2},
      {"whoever failed, if there is no other",
       {With(kP, [](Candidate& c) { c.failed_before = true; }), kD},
       kPlaced,
       0,
       1},
      {"positions are a limit", {kP, kD}, kNone, -1, -1, {.tokens = 4096, .tokens_max = 4097}},
      {"up to the last",
       {With(kM, [](Candidate& c) { c.kv_pages = c.kv_pages_free = 64; })},
       kPlaced,
       0,
       0,
       {.tokens = 4095, .tokens_max = 4096}},
      {"pages are a limit",
       {With(kM, [](Candidate& c) { c.kv_pages = c.kv_pages_free = 63; })},
       kNone,
       -1,
       -1,
       {.tokens = 4032, .tokens_max = 4033}},
      {"an instance that holds the whole answer, if there is one",
       {kP, With(kD, [](Candidate& c) { c.positions = 690; }),
        With(kD, [](Candidate& c) { c.requests = 6; })},
       kPlaced,
       0,
       2},
  };
  for (const auto& test : cases) {
    SCOPED_TRACE(test.name);
    const Placement placement = Place(test.need, test.candidates);
    EXPECT_EQ(placement.verdict, test.verdict);
    EXPECT_EQ(placement.prefill, test.prefill);
    EXPECT_EQ(placement.decode, test.decode);
  }
}

TEST(PlacementTest, LongestSequence) {
  const Candidate small = With(kD, [](Candidate& c) { c.kv_pages = 10; });
  const Candidate foreign = With(kD, [](Candidate& c) { c.kv_layout = "other"; });
  const struct {
    std::string name;
    std::vector<Candidate> candidates;
    int64_t tokens;
    std::string limited_by;
  } cases[] = {
      {"nobody", {}, 0, ""},
      {"one side", {kP}, 0, ""},
      {"sides that do not fit together", {kP, foreign}, 0, ""},
      {"by positions", {kP, kD}, 4096, "positions"},
      {"by the decode's pages", {kP, small}, 640, "kv_pages"},
      {"by the prefill's pages, where what breaks is computed anew",
       {With(kP, [](Candidate& c) { c.kv_pages = 10; }), kD},
       640,
       "kv_pages"},
      {"by pages that hold all positions there are",
       {With(kM, [](Candidate& c) { c.kv_pages = 10, c.positions = 640; })},
       640,
       "kv_pages"},
      {"the largest pair", {kP, small, kD}, 4096, "positions"},
      {"a mixed instance",
       {kP, small, With(kM, [](Candidate& c) { c.positions = 1000; })},
       1000,
       "positions"},
  };
  for (const auto& test : cases) {
    SCOPED_TRACE(test.name);
    const SequenceLimit limit = LongestSequence(test.candidates);
    EXPECT_EQ(limit.tokens, test.tokens);
    EXPECT_EQ(limit.limited_by, test.limited_by);
  }
}

}  // namespace
}  // namespace sluice::router
