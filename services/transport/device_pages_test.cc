#include "services/transport/device_pages.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "services/transport/memory_mover.h"
#include "services/transport/turns.h"

namespace sluice::transport {
namespace {

constexpr KvLayout kLayout{.layers = 2, .pages = 3, .page_rows = 4, .row_bytes = 40};
constexpr size_t kBytes = 1024 * 256;  // of one connection: 1024 slots for 160 bytes, aligned

TEST(StagingPoolTest, IsBoundedAndUsesMemoryAgain) {
  MemoryMover mover(std::make_shared<MemoryMoverFaults>());
  StagingPool pool(&mover, kLayout, 3 * kBytes - 1);
  std::optional<Staging> first = *pool.Take();
  EXPECT_EQ(first->free(), 1024u);
  EXPECT_EQ(first->quarter(), 256u);
  std::byte* const slot = first->Take();
  const absl::StatusOr<Staging> second = pool.Take();
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(pool.Take().status(),
            absl::ResourceExhaustedError(
                "all pinned memory for KV is in use: 2 connections have 262144 bytes each"));
  first.reset();
  first = *pool.Take();
  EXPECT_EQ(first->free(), 1024u);
  EXPECT_EQ(first->Take(), slot);
  EXPECT_FALSE(pool.Take().ok());
}

TEST(StagingPoolTest, OneConnectionIsAlwaysServed) {
  MemoryMover mover(std::make_shared<MemoryMoverFaults>());
  StagingPool pool(&mover, kLayout, 0);
  EXPECT_TRUE(pool.Take().ok());
}

TEST(TurnsTest, BeginsBehindTheLastThatFoundRoom) {
  MemoryMover mover(std::make_shared<MemoryMoverFaults>());  // has room for three batches
  std::map<uint64_t, std::unique_ptr<int>> entries;
  for (const uint64_t id : {3, 5, 8, 9}) entries[id] = std::make_unique<int>();
  std::byte bytes[8] = {};
  const PageCopy copies[] = {{.from = bytes, .bytes = sizeof(bytes)}};
  uint64_t first = 0;
  const auto visit = [&] {
    std::vector<std::unique_ptr<PageBatch>> batches;
    std::vector<uint64_t> served, order;
    VisitInTurn(&mover, &entries, &first, [&](uint64_t id, int*) {
      order.push_back(id);
      if (!mover.HasRoom()) return;
      served.push_back(id);
      batches.push_back(*mover.Queue(copies, {}));
    });
    EXPECT_EQ(order.size(), 4u);
    return served;
  };
  using Ids = std::vector<uint64_t>;
  EXPECT_EQ(visit(), Ids({3, 5, 8}));
  EXPECT_EQ(visit(), Ids({9, 3, 5}));
  entries.erase(8);  // whose turn it was
  entries[12] = std::make_unique<int>();
  EXPECT_EQ(visit(), Ids({9, 12, 3}));
  entries.erase(3);
  EXPECT_EQ(entries.size(), 3u);
  entries[1] = std::make_unique<int>();
  EXPECT_EQ(visit(), Ids({5, 9, 12}));
  EXPECT_EQ(visit(), Ids({1, 5, 9})) << "from the beginning again";
}

}  // namespace
}  // namespace sluice::transport
