#include "services/router/prefix_index.h"

#include <cstring>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/router/kv_follower.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;

std::string Hash(uint64_t page) {
  std::string hash(kPageHashBytes, '\0');
  const uint64_t mixed = (page + 1) * 0x9E3779B97F4A7C15;
  std::memcpy(hash.data(), &mixed, sizeof(mixed));
  return hash;
}

std::string Hashes(uint64_t first, uint64_t count) {
  std::string hashes;
  for (uint64_t i = 0; i < count; ++i) hashes += Hash(first + i);
  return hashes;
}

std::vector<uint32_t> Match(const PrefixIndex& index, absl::string_view hashes) {
  std::vector<uint32_t> pages(kIndexedWorkersMax, 99);
  index.Match(hashes, absl::MakeSpan(pages));
  return pages;
}

TEST(PrefixIndexTest, CountsLeadingPagesOfEachWorker) {
  PrefixIndex index(10'000);
  const int none = *index.AddWorker();
  const int some = *index.AddWorker();
  const int all = *index.AddWorker();
  const int hole = *index.AddWorker();
  index.Store(some, Hashes(0, 3));
  index.Store(all, Hashes(0, 40));
  index.Store(hole, Hash(0));
  index.Store(hole, Hashes(2, 10));  // what follows a hole is of no use
  const auto pages = Match(index, Hashes(0, 20));
  EXPECT_EQ(pages[none], 0);
  EXPECT_EQ(pages[some], 3);
  EXPECT_EQ(pages[all], 20);
  EXPECT_EQ(pages[hole], 1);
  EXPECT_EQ(pages[200], 0);
  EXPECT_EQ(index.size(), 40);
  EXPECT_EQ(Match(index, "")[all], 0);
}

TEST(PrefixIndexTest, RemovedPagesShortenTheMatch) {
  PrefixIndex index(10'000);
  const int slot = *index.AddWorker();
  index.Store(slot, Hashes(0, 5));
  index.Remove(slot, Hash(3));
  index.Remove(slot, Hash(77));  // never stored
  EXPECT_EQ(Match(index, Hashes(0, 5))[slot], 3);
  EXPECT_EQ(index.size(), 4);
}

TEST(PrefixIndexTest, ALeavingWorkerIsForgottenAtOnceAndItsSlotIsCleanWhenUsedAgain) {
  PrefixIndex index(10'000);
  std::vector<int> slots;
  for (int i = 0; i < kIndexedWorkersMax; ++i) slots.push_back(*index.AddWorker());
  EXPECT_FALSE(index.AddWorker().has_value());
  const int stays = slots[3];
  const int leaves = slots[200];
  index.Store(leaves, Hashes(0, 2000));
  index.Store(stays, Hashes(0, 7));
  index.RemoveWorker(leaves);
  EXPECT_EQ(Match(index, Hashes(0, 9))[leaves], 0);
  EXPECT_EQ(Match(index, Hashes(0, 9))[stays], 7);
  // No slot is free before a sweep: this one sweeps everything.
  const std::optional<int> again = index.AddWorker();
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(*again, leaves);
  EXPECT_EQ(Match(index, Hashes(0, 9))[leaves], 0);
  EXPECT_EQ(index.size(), 7);
}

TEST(PrefixIndexTest, BeyondItsBoundNewPagesAreNotTakenInAndOldOnesStay) {
  PrefixIndex index(1024);
  index.Reserve(1 << 20);
  const int slot = *index.AddWorker();
  const int other = *index.AddWorker();
  index.Store(slot, Hashes(0, 1024));
  index.Store(slot, Hashes(5000, 10));
  EXPECT_EQ(index.size(), 1024);
  EXPECT_EQ(index.pages_dropped(), 10);
  EXPECT_EQ(Match(index, Hashes(0, 1024))[slot], 1024);
  EXPECT_EQ(Match(index, Hashes(5000, 10))[slot], 0);
  index.Store(other, Hashes(0, 4));  // known pages take no room
  EXPECT_EQ(Match(index, Hashes(0, 8))[other], 4);
  index.Remove(slot, Hashes(100, 10));
  index.Store(slot, Hashes(5000, 10));
  EXPECT_EQ(Match(index, Hashes(5000, 10))[slot], 10);
}

TEST(PrefixIndexTest, AMillionPagesFitInto200Megabytes) {
  PrefixIndex index(1 << 20);
  index.Reserve(1 << 20);
  EXPECT_GE(index.room(), 1 << 20);
  EXPECT_LT(index.capacity_bytes(), 200 << 20);
}

// Against a plain map, with workers that come and go, slices of sweeps, growth and a full table.
TEST(PrefixIndexTest, AgreesWithAMapUnderRandomChanges) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    PrefixIndex index(4096);
    std::map<int, std::set<uint64_t>> model;  // slot -> pages
    std::set<int> slots;
    for (int step = 0; step < 3000; ++step) {
      const uint32_t action = rng() % 100;
      if (slots.empty() || action < 3) {
        if (const std::optional<int> slot = index.AddWorker()) {
          ASSERT_TRUE(slots.insert(*slot).second);
          model[*slot].clear();
        }
        continue;
      }
      const int slot = *std::next(slots.begin(), rng() % slots.size());
      const uint64_t first = rng() % 900;
      const uint64_t count = rng() % 20;
      if (action < 5) {
        index.RemoveWorker(slot);
        slots.erase(slot);
        model.erase(slot);
      } else if (action < 55) {
        index.Store(slot, Hashes(first, count));
        for (uint64_t i = 0; i < count; ++i) model[slot].insert(first + i);
      } else if (action < 85) {
        index.Remove(slot, Hashes(first, count));
        for (uint64_t i = 0; i < count; ++i) model[slot].erase(first + i);
      } else if (action < 95) {
        index.Sweep(rng() % 500);
      } else if (action == 99) {
        index.Reserve(1024 + rng() % 3000);
      }
      const auto pages = Match(index, Hashes(first, 30));
      for (int s = 0; s < kIndexedWorkersMax; ++s) {
        uint32_t want = 0;
        if (slots.contains(s)) {
          while (want < 30 && model[s].contains(first + want)) ++want;
        }
        ASSERT_EQ(pages[s], want) << "slot " << s << " step " << step;
      }
    }
    for (int slot : slots) index.RemoveWorker(slot);
    for (int i = 0; i < 100; ++i) index.Sweep(1000);
    EXPECT_EQ(index.size(), 0);
  }
}

sluice::v1::KvEvents Events(uint64_t sequence, bool snapshot, const std::string& stored,
                            const std::string& removed = "") {
  sluice::v1::KvEvents events;
  events.set_sequence(sequence);
  events.set_snapshot(snapshot);
  events.set_stored_hashes(stored);
  events.set_removed_hashes(removed);
  return events;
}

TEST(KvFollowerTest, StartsFromASnapshotAndAsksForOneAfterAGap) {
  PrefixIndex index(10'000);
  KvFollower follower(&index);
  const auto known = [&] { return Match(index, Hashes(0, 10))[*follower.slot()]; };
  const struct {
    sluice::v1::KvEvents events;
    KvEventsResult want;
    uint32_t pages;
  } steps[] = {
      {Events(6, false, Hashes(0, 2)), KvEventsResult::kGap, 0},
      {Events(7, false, Hashes(0, 2)), KvEventsResult::kWaiting, 0},
      {Events(8, true, Hashes(0, 3)), KvEventsResult::kSnapshot, 3},
      {Events(9, false, Hash(3)), KvEventsResult::kApplied, 4},
      {Events(10, false, "", Hash(2)), KvEventsResult::kApplied, 2},
      {Events(12, false, Hash(2)), KvEventsResult::kGap, 2},
      {Events(13, false, Hash(2)), KvEventsResult::kWaiting, 2},
      {Events(14, true, Hash(0)), KvEventsResult::kSnapshot, 1},  // replaces everything
      {Events(15, false, Hash(1)), KvEventsResult::kApplied, 2},
      {Events(15, false, Hash(2)), KvEventsResult::kGap, 2},  // twice the same number
  };
  for (const auto& step : steps) {
    EXPECT_EQ(follower.Apply(step.events), step.want) << step.events.sequence();
    EXPECT_EQ(known(), step.pages) << step.events.sequence();
  }
}

TEST(KvFollowerTest, IgnoresHashesThatAreCutOff) {
  PrefixIndex index(10'000);
  KvFollower follower(&index);
  EXPECT_EQ(follower.Apply(Events(1, true, Hashes(0, 2) + "short")), KvEventsResult::kSnapshot);
  EXPECT_EQ(index.size(), 2);
}

}  // namespace
}  // namespace sluice::router
