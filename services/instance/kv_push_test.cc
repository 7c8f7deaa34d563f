#include "services/instance/kv_push.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/instance/fake_transport.h"

namespace sluice::instance {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr int64_t kLayers = 2;
constexpr uint64_t kRequest = 5;

// "layer.index@page:rows" of each write since the last call.
std::vector<std::string> Take(FakeSender* sender, transport::TransferId transfer) {
  std::vector<std::string> out;
  for (const transport::PageWrite& write : sender->transfers.at(transfer).writes) {
    out.push_back(absl::StrCat(write.layer, ".", write.index, "@", write.page, ":", write.rows));
  }
  sender->transfers.at(transfer).writes.clear();
  return out;
}

class KvPushTest : public testing::Test {
 protected:
  transport::TransferId Begin() { return *sender_.Begin({}, absl::Minutes(1), nullptr); }

  FakeSender sender_;
  KvPush push_{kLayers, &sender_};
};

TEST_F(KvPushTest, FullPagesGoLayerByLayerAndThePartialOneWithTheLastRow) {
  const auto transfer = Begin();
  push_.Add(kRequest, 150);
  push_.Grant(kRequest, transfer, 0);
  push_.OnPlanned(1, kRequest, 0, 100, {30, 31});
  EXPECT_THAT(Take(&sender_, transfer), IsEmpty());
  push_.OnKvWritten(1, 0, {});
  EXPECT_THAT(Take(&sender_, transfer), ElementsAre("0.0@30:64"));
  // The next step is planned while this one runs.
  push_.OnPlanned(2, kRequest, 100, 50, {30, 31, 32});
  EXPECT_THAT(Take(&sender_, transfer), IsEmpty());
  push_.OnKvWritten(1, 1, {});
  EXPECT_THAT(Take(&sender_, transfer), ElementsAre("1.0@30:64"));
  push_.OnKvWritten(2, 0, {});
  EXPECT_THAT(Take(&sender_, transfer), ElementsAre("0.1@31:64", "0.2@32:22"));
  push_.OnKvWritten(2, 1, {});
  EXPECT_THAT(Take(&sender_, transfer), ElementsAre("1.1@31:64", "1.2@32:22"));
}

TEST_F(KvPushTest, WhatWasComputedBeforeTheLeaseGoesWhenItComes) {
  const auto transfer = Begin();
  push_.Add(kRequest, 128);
  push_.OnPlanned(1, kRequest, 0, 128, {3, 4});
  push_.OnKvWritten(1, 0, {});
  push_.Grant(kRequest, transfer, 1);
  EXPECT_THAT(Take(&sender_, transfer), ElementsAre("0.1@4:64"));
  push_.OnKvWritten(1, 1, {});
  EXPECT_THAT(Take(&sender_, transfer), ElementsAre("1.1@4:64"));
}

// Not for what the stream has been given since, for other layers and other requests.
TEST_F(KvPushTest, PagesWaitForThePointAtWhichTheyAreWritten) {
  const auto points = [&](transport::TransferId transfer) {
    std::vector<uint64_t> out;
    for (const transport::PageWrite& write : sender_.transfers.at(transfer).writes) {
      out.push_back(write.after.number);
    }
    sender_.transfers.at(transfer).writes.clear();
    return out;
  };
  const auto late = Begin(), cached = Begin();
  push_.Add(kRequest, 128);
  push_.OnPlanned(1, kRequest, 0, 64, {3});
  push_.OnPlanned(2, kRequest, 64, 64, {3, 4});
  push_.OnKvWritten(1, 0, {10});
  push_.OnKvWritten(1, 1, {11});
  push_.OnKvWritten(2, 0, {12});
  push_.Grant(kRequest, late, 0);
  EXPECT_THAT(points(late), ElementsAre(12, 12, 11));
  push_.OnKvWritten(2, 1, {13});
  EXPECT_THAT(points(late), ElementsAre(13));

  push_.Add(kRequest + 1, 130);
  push_.Grant(kRequest + 1, cached, 0);
  push_.OnPlanned(3, kRequest + 1, 128, 2, {7, 8, 9});
  EXPECT_THAT(points(cached), ElementsAre(0, 0, 0, 0));
  push_.OnKvWritten(3, 0, {14});
  push_.OnKvWritten(3, 1, {15});
  EXPECT_THAT(points(cached), ElementsAre(14, 15));
}

TEST_F(KvPushTest, CachedPagesGoWhenTheFirstChunkIsPlanned) {
  const auto transfer = Begin();
  push_.Add(kRequest, 130);
  push_.Grant(kRequest, transfer, 0);
  push_.OnPlanned(1, kRequest, 128, 2, {7, 8, 9});
  EXPECT_THAT(Take(&sender_, transfer),
              ElementsAre("0.0@7:64", "0.1@8:64", "1.0@7:64", "1.1@8:64"));
  push_.OnKvWritten(1, 0, {});
  push_.OnKvWritten(1, 1, {});
  EXPECT_THAT(Take(&sender_, transfer), ElementsAre("0.2@9:2", "1.2@9:2"));
}

TEST_F(KvPushTest, NothingGoesWhenTheReceiverHasAll) {
  const auto transfer = Begin();
  push_.Add(kRequest, 128);
  push_.Grant(kRequest, transfer, 2);
  push_.OnPlanned(1, kRequest, 64, 64, {7, 8});
  push_.OnKvWritten(1, 0, {});
  push_.OnKvWritten(1, 1, {});
  EXPECT_THAT(Take(&sender_, transfer), IsEmpty());
}

TEST_F(KvPushTest, NothingGoesAfterDrop) {
  const auto transfer = Begin();
  push_.Add(kRequest, 64);
  push_.Grant(kRequest, transfer, 0);
  push_.OnPlanned(1, kRequest, 0, 64, {7});
  push_.OnKvWritten(1, 0, {});
  Take(&sender_, transfer);
  push_.Drop(kRequest);
  push_.OnKvWritten(1, 1, {});
  push_.Grant(kRequest, transfer, 0);
  EXPECT_THAT(Take(&sender_, transfer), IsEmpty());
}

TEST_F(KvPushTest, RequestsOfOneStepAreKeptApart) {
  const auto first = Begin();
  const auto second = Begin();
  push_.Add(1, 64);
  push_.Add(2, 64);
  push_.Grant(1, first, 0);
  push_.Grant(2, second, 0);
  push_.OnPlanned(1, 1, 0, 64, {10});
  push_.OnPlanned(1, 2, 0, 63, {20});
  push_.OnKvWritten(1, 0, {});
  EXPECT_THAT(Take(&sender_, first), ElementsAre("0.0@10:64"));
  EXPECT_THAT(Take(&sender_, second), IsEmpty());
  push_.OnPlanned(2, 2, 63, 1, {20});
  push_.OnKvWritten(1, 1, {});
  push_.OnKvWritten(2, 0, {});
  EXPECT_THAT(Take(&sender_, second), ElementsAre("0.0@20:64"));
}

}  // namespace
}  // namespace sluice::instance
