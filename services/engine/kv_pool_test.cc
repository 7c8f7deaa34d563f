#include "services/engine/kv_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <random>
#include <set>

namespace sluice::engine {
namespace {

using model::PageHash;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

PageHash Name(uint8_t number) {
  PageHash name{};
  name[3] = number;
  return name;
}

std::vector<PageHash> Names(std::initializer_list<uint8_t> numbers) {
  std::vector<PageHash> names;
  for (const uint8_t number : numbers) names.push_back(Name(number));
  return names;
}

std::vector<int32_t> Allocate(KvPool* pool, int64_t count) {
  std::vector<int32_t> pages;
  EXPECT_TRUE(pool->Allocate(count, &pages));
  return pages;
}

// Pages named 1, 2, … in order, given back.
std::vector<int32_t> Cache(KvPool* pool, int64_t count) {
  const std::vector<int32_t> pages = Allocate(pool, count);
  for (int64_t i = 0; i < count; ++i) pool->SetName(pages[i], Name(static_cast<uint8_t>(i + 1)));
  pool->Release(pages);
  return pages;
}

TEST(KvPoolTest, AllocatesAllOrNothing) {
  KvPool pool(3);
  std::vector<int32_t> pages = Allocate(&pool, 2);
  EXPECT_FALSE(pool.Allocate(2, &pages));
  EXPECT_EQ(pages.size(), 2u);
  EXPECT_EQ(pool.num_free(), 1);
  pool.Release(pages);
  EXPECT_EQ(pool.num_free(), 3);
}

TEST(KvPoolTest, MatchesTheLongestKnownPrefix) {
  KvPool pool(6);
  const std::vector<int32_t> pages = Cache(&pool, 3);
  std::vector<int32_t> found;
  EXPECT_EQ(pool.Match(Names({9, 1}), &found), 0);
  EXPECT_EQ(pool.Match(Names({1, 2, 9, 3}), &found), 2);
  EXPECT_THAT(found, ElementsAre(pages[0], pages[1]));
  EXPECT_EQ(pool.num_cached(), 1);
  EXPECT_EQ(pool.num_free(), 4);
  EXPECT_EQ(pool.Match(Names({1}), &found), 1);
  pool.Release(found);  // the first one twice
  EXPECT_EQ(pool.num_cached(), 3);
  EXPECT_EQ(pool.num_free(), 6);
}

TEST(KvPoolTest, ForgetsTheEndOfTheOldestSequenceFirst) {
  KvPool pool(4);
  const std::vector<int32_t> old = Cache(&pool, 3);
  const std::vector<int32_t> young = Allocate(&pool, 1);
  pool.SetName(young[0], Name(7));
  pool.Release(young);
  EXPECT_THAT(Allocate(&pool, 2), ElementsAre(old[2], old[1]));
  std::vector<int32_t> found;
  EXPECT_EQ(pool.Match(Names({1, 2}), &found), 1);
  // Matching made it the youngest.
  pool.Release(found);
  EXPECT_THAT(Allocate(&pool, 2), ElementsAre(young[0], old[0]));
}

TEST(KvPoolTest, PagesThatHoldNothingGoBeforeCachedOnes) {
  KvPool pool(4);
  Cache(&pool, 2);
  Allocate(&pool, 2);
  EXPECT_EQ(pool.num_cached(), 2);
}

TEST(KvPoolTest, HeldPagesAreNotForgotten) {
  KvPool pool(2);
  Cache(&pool, 2);
  std::vector<int32_t> held, more;
  EXPECT_EQ(pool.Match(Names({1, 2}), &held), 2);
  EXPECT_FALSE(pool.Allocate(1, &more));
  pool.Release(held);
  EXPECT_TRUE(pool.Allocate(1, &more));
}

TEST(KvPoolTest, ANameBelongsToOnePage) {
  KvPool pool(3);
  const std::vector<int32_t> pages = Allocate(&pool, 2);
  pool.SetName(pages[0], Name(1));
  pool.SetName(pages[1], Name(1));
  pool.SetName(pages[0], Name(2));
  pool.Release(pages);
  EXPECT_EQ(pool.num_cached(), 1);
  std::vector<int32_t> found;
  EXPECT_EQ(pool.Match(Names({2}), &found), 0);
  EXPECT_EQ(pool.Match(Names({1}), &found), 1);
  EXPECT_THAT(found, ElementsAre(pages[0]));
}

TEST(KvPoolTest, ForgottenNamesAreNotFound) {
  KvPool pool(3);
  const std::vector<int32_t> pages = Cache(&pool, 2);
  std::vector<int32_t> held;
  pool.Match(Names({1}), &held);
  pool.ForgetName(pages[0]);  // held
  pool.ForgetName(pages[1]);  // cached
  EXPECT_EQ(pool.num_cached(), 0);
  EXPECT_EQ(pool.num_free(), 2);
  std::vector<int32_t> found;
  EXPECT_EQ(pool.Match(Names({1}), &found), 0);
  pool.Release(held);
  EXPECT_EQ(pool.num_free(), 3);
  EXPECT_EQ(pool.num_cached(), 0);
}

TEST(KvPoolTest, QuarantinedPagesAreNobodys) {
  KvPool pool(3);
  const std::vector<int32_t> pages = Allocate(&pool, 2);
  pool.Quarantine(pages);
  EXPECT_EQ(pool.num_quarantined(), 2);
  EXPECT_EQ(pool.num_free(), 1);
  std::vector<int32_t> more;
  EXPECT_FALSE(pool.Allocate(2, &more));
  pool.EndQuarantine(pages);
  EXPECT_EQ(pool.num_quarantined(), 0);
  EXPECT_TRUE(pool.Allocate(3, &more));
}

TEST(KvPoolTest, EventsAreTheNetChange) {
  KvPool pool(2);
  std::vector<PageHash> stored, removed;
  Cache(&pool, 2);
  EXPECT_THAT(pool.Snapshot(), IsEmpty()) << "as of the last TakeEvents";
  pool.TakeEvents(&stored, &removed);
  EXPECT_EQ(stored, Names({1, 2}));
  EXPECT_THAT(removed, IsEmpty());
  // Name 2 goes, 3 comes and goes, 4 comes.
  for (const uint8_t number : {3, 4}) {
    const std::vector<int32_t> pages = Allocate(&pool, 1);
    pool.SetName(pages[0], Name(number));
    if (number == 3) pool.ForgetName(pages[0]);
    pool.Release(pages);
  }
  EXPECT_EQ(pool.Snapshot(), Names({1, 2}));
  pool.TakeEvents(&stored, &removed);
  EXPECT_EQ(stored, Names({4}));
  EXPECT_EQ(removed, Names({2}));
  EXPECT_EQ(pool.Snapshot(), Names({1, 4}));
  // Name 1 goes and comes back.
  const std::vector<int32_t> page = Allocate(&pool, 1);
  pool.SetName(page[0], Name(1));
  pool.TakeEvents(&stored, &removed);
  EXPECT_THAT(stored, IsEmpty());
  EXPECT_THAT(removed, IsEmpty());
}

TEST(KvPoolDeathTest, BrokenInvariantsAbort) {
  KvPool pool(2);
  const std::vector<int32_t> page = Allocate(&pool, 1);
  EXPECT_DEATH(pool.Release({page[0], page[0]}), "released, but nobody holds it");
  EXPECT_DEATH(pool.Release({2}), "KV page 2");
  EXPECT_DEATH(pool.Release({-1}), "KV page -1");
  EXPECT_DEATH(pool.EndQuarantine(page), "not in it");
  pool.SetName(page[0], Name(1));
  EXPECT_DEATH(pool.Quarantine(page), "while it is shared");
}

// Against a pool that keeps everything in lists and maps.
TEST(KvPoolTest, RandomUseKeepsTheBooks) {
  const uint32_t first_seed = std::random_device{}();
  for (uint32_t seed = first_seed; seed < first_seed + 40; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto below = [&](size_t n) { return random() % n; };
    const int64_t num_pages = 1 + below(12);
    KvPool pool(num_pages);
    std::vector<std::vector<int32_t>> sequences;
    std::vector<std::vector<int32_t>> quarantined;
    std::map<int32_t, int> references;
    std::map<int32_t, PageHash> name_of_page;
    std::list<int32_t> cached;  // given back longest ago first
    std::set<PageHash> announced;

    const auto release = [&](const std::vector<int32_t>& pages) {
      for (auto it = pages.rbegin(); it != pages.rend(); ++it) {
        if (--references[*it] > 0) continue;
        references.erase(*it);
        if (name_of_page.count(*it) > 0) cached.push_back(*it);
      }
      pool.Release(pages);
    };
    for (int step = 0; step < 400; ++step) {
      switch (below(7)) {
        case 0: {  // allocate
          const int64_t count = below(4);
          const int64_t free = pool.num_free();
          std::vector<int32_t> pages;
          ASSERT_EQ(pool.Allocate(count, &pages), count <= free);
          for (const int32_t page : pages) {
            ASSERT_EQ(references.count(page), 0u) << "held already";
            for (const auto& others : quarantined) {
              ASSERT_EQ(std::count(others.begin(), others.end(), page), 0);
            }
            references[page] = 1;
            if (name_of_page.erase(page) == 0) continue;
            ASSERT_EQ(page, cached.front()) << "not the one given back longest ago";
            cached.pop_front();
          }
          sequences.push_back(pages);
          break;
        }
        case 1: {  // match
          std::vector<PageHash> names;
          for (size_t i = below(4); i > 0; --i) names.push_back(Name(below(10)));
          std::vector<int32_t> pages;
          const int64_t count = pool.Match(names, &pages);
          ASSERT_EQ(pages.size(), static_cast<size_t>(count));
          for (int64_t i = 0; i < count; ++i) {
            ASSERT_EQ(name_of_page.at(pages[i]), names[i]);
            ++references[pages[i]];
            cached.remove(pages[i]);
          }
          if (count < static_cast<int64_t>(names.size())) {
            for (const auto& [page, name] : name_of_page) ASSERT_NE(name, names[count]);
          }
          sequences.push_back(pages);
          break;
        }
        case 2:
        case 3: {  // name
          if (sequences.empty()) break;
          const std::vector<int32_t>& pages = sequences[below(sequences.size())];
          if (pages.empty()) break;
          const int32_t page = pages[below(pages.size())];
          const PageHash name = Name(below(10));
          bool taken = name_of_page.count(page) > 0;
          for (const auto& [other, others] : name_of_page) taken |= others == name;
          if (!taken) name_of_page[page] = name;
          pool.SetName(page, name);
          break;
        }
        case 4: {  // release
          if (sequences.empty()) break;
          const size_t i = below(sequences.size());
          release(sequences[i]);
          sequences.erase(sequences.begin() + i);
          break;
        }
        case 5: {  // quarantine, where nothing is shared
          if (sequences.empty()) break;
          const size_t i = below(sequences.size());
          const bool shared = std::any_of(
              sequences[i].begin(), sequences[i].end(),
              [&](int32_t page) { return references[page] > 1 || name_of_page.count(page) > 0; });
          if (shared) break;
          pool.Quarantine(sequences[i]);
          for (const int32_t page : sequences[i]) references.erase(page);
          quarantined.push_back(sequences[i]);
          sequences.erase(sequences.begin() + i);
          break;
        }
        case 6: {
          if (quarantined.empty()) break;
          pool.EndQuarantine(quarantined.back());
          quarantined.pop_back();
          break;
        }
      }
      int64_t in_quarantine = 0;
      for (const auto& pages : quarantined) in_quarantine += pages.size();
      ASSERT_EQ(pool.num_quarantined(), in_quarantine);
      ASSERT_EQ(pool.num_cached(), static_cast<int64_t>(cached.size()));
      ASSERT_EQ(pool.num_free() + in_quarantine + static_cast<int64_t>(references.size()),
                num_pages);
      if (below(5) > 0) continue;
      const std::vector<PageHash> snapshot = pool.Snapshot();
      ASSERT_EQ(std::set<PageHash>(snapshot.begin(), snapshot.end()), announced);
      std::vector<PageHash> stored, removed;
      pool.TakeEvents(&stored, &removed);
      for (const PageHash& name : removed) ASSERT_EQ(announced.erase(name), 1u);
      for (const PageHash& name : stored) ASSERT_TRUE(announced.insert(name).second);
      std::set<PageHash> names;
      for (const auto& [page, name] : name_of_page) names.insert(name);
      ASSERT_EQ(announced, names);
    }
    for (const auto& pages : sequences) release(pages);
    for (const auto& pages : quarantined) pool.EndQuarantine(pages);
    EXPECT_EQ(pool.num_free(), num_pages);
  }
}

}  // namespace
}  // namespace sluice::engine
