#include "kernels/base/memory_ledger.h"

#include "gtest/gtest.h"

namespace sluice {
namespace {

TEST(MemoryLedgerTest, NamesTheLargest) {
  const auto ledger = std::make_shared<MemoryLedger>();
  EXPECT_EQ(ledger->ToString(), "nothing so far");
  auto weights = MemoryLedger::Take(ledger, "weights", 40'000'000'000);
  EXPECT_EQ(ledger->ToString(), "40.0 GB so far: weights 40.0 GB");
  EXPECT_EQ(ledger->bytes(), (std::map<std::string, uint64_t>{{"weights", 40'000'000'000}}));
  const auto a = MemoryLedger::Take(ledger, "logits", 1'500'000);
  const auto b = MemoryLedger::Take(ledger, "KV cache", 2'000'000'000);
  const auto c = MemoryLedger::Take(ledger, "KV cache", 3'000'000'000);
  const auto d = MemoryLedger::Take(ledger, "ids", 999);
  EXPECT_EQ(ledger->ToString(),
            "45.0 GB so far: weights 40.0 GB, KV cache 5.0 GB, logits 1.5 MB, others 999 B");
  weights.reset();
  EXPECT_EQ(ledger->ToString(), "5.0 GB so far: KV cache 5.0 GB, logits 1.5 MB, ids 999 B");
}

}  // namespace
}  // namespace sluice
