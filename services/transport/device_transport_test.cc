// KV transfer between memories that the processor does not reach, with an in-memory twin of the
// device: what holds of copies that are in flight when something else happens.
#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "services/transport/kv_transfer_cases.h"
#include "services/transport/memory_mover.h"
#include "services/transport/socket_transport.h"

namespace sluice::transport {

// Of the common cases only what they are made of is used here.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(KvTransferTest);

namespace {

constexpr KvLayout kLayout{.layers = 3, .pages = 8, .page_rows = 4, .row_bytes = 40};

// Where every process has a device of its own.
class DeviceNetwork final : public TestNetwork {
 public:
  explicit DeviceNetwork(Medium medium) : medium_(medium) {}
  std::unique_ptr<KvTransport> Join(const KvMemory& memory, uint64_t incarnation) override {
    faults.push_back(std::make_shared<MemoryMoverFaults>());
    auto transport = MakeSocketTransport({.memory = memory,
                                          .mover = std::make_unique<MemoryMover>(faults.back()),
                                          .incarnation = incarnation,
                                          .medium = medium_});
    EXPECT_TRUE(transport.ok()) << transport.status();
    return *std::move(transport);
  }
  std::vector<std::shared_ptr<MemoryMoverFaults>> faults;  // by the order of joining

 private:
  const Medium medium_;
};

// Where nobody has one.
class ProcessorNetwork final : public TestNetwork {
 public:
  explicit ProcessorNetwork(Medium medium) : medium_(medium) {}
  std::unique_ptr<KvTransport> Join(const KvMemory& memory, uint64_t incarnation) override {
    return *MakeSocketTransport({.memory = memory, .incarnation = incarnation, .medium = medium_});
  }

 private:
  const Medium medium_;
};

class DeviceTransportTest : public testing::TestWithParam<Medium> {
 protected:
  MemoryMoverFaults& sender_device() { return *network_.faults[0]; }
  MemoryMoverFaults& receiver_device() { return *network_.faults[1]; }
  KvReceiver& receiver() { return to_->transport->receiver(); }
  KvSender& sender() { return from_->transport->sender(); }

  void Begin(const std::vector<uint32_t>& pages, uint64_t id = 1) {
    lease_ = to_->MakeLease(id, 0, pages);
    ASSERT_EQ(to_->Open(lease_, 4 * lease_.pages_size(), done_), absl::OkStatus());
    transfer_ = from_->Begin(lease_, sent_);
    ASSERT_EQ(sender().Write(transfer_, AllWrites(kLayout, lease_, 4)), absl::OkStatus());
  }
  static void WaitUntilItHolds(const MemoryMoverFaults& device) {
    const absl::Time end = absl::Now() + kPatience;
    while (!device.holds()) {
      ASSERT_LT(absl::Now(), end);
      std::this_thread::yield();
    }
  }

  DeviceNetwork network_{GetParam()};
  std::unique_ptr<Side> from_ = std::make_unique<Side>(&network_, kLayout, 11);
  std::unique_ptr<Side> to_ = std::make_unique<Side>(&network_, kLayout, 22);
  v1::Lease lease_;
  TransferId transfer_ = 0;
  Box<LeaseResult> done_;
  Box<absl::Status> sent_;
};

INSTANTIATE_TEST_SUITE_P(Media, DeviceTransportTest,
                         testing::Values(Medium::kBest, Medium::kSharedMemory, Medium::kTcp),
                         [](const auto& info) {
                           return std::string(info.param == Medium::kBest  ? "mapped"
                                              : info.param == Medium::kTcp ? "tcp"
                                                                           : "shared_memory");
                         });

TEST_P(DeviceTransportTest, ADamagedCopyIsRefused) {
  receiver_device().DamageNextCopy();
  Begin({1, 2});
  const auto result = done_.Wait();
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kDataLoss);
  EXPECT_EQ(receiver().Close(1, kPatience), absl::OkStatus());
}

// The fence waits for copies that the device has not made yet.
TEST_P(DeviceTransportTest, CloseWaitsForCopiesInFlight) {
  receiver_device().Hold(true);
  const std::string before = to_->pool.Copy();
  Begin({1, 2});
  WaitUntilItHolds(receiver_device());
  const absl::Status closed = receiver().Close(1, absl::ZeroDuration());
  EXPECT_EQ(closed.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(before == to_->pool.Copy());
  receiver_device().Hold(false);
  EXPECT_EQ(receiver().Close(1, kPatience), absl::OkStatus());
  const std::string fenced = to_->pool.Copy();
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kNotFound);
  EXPECT_TRUE(fenced == to_->pool.Copy());
  EXPECT_FALSE(done_.Has());
}

// The sender goes while the receiver's device still has copies to make: they end, nothing else of
// it comes, and the pages are free.
TEST_P(DeviceTransportTest, ASenderThatGoesLeavesNothingInFlight) {
  receiver_device().Hold(true);
  Begin({1, 2});
  WaitUntilItHolds(receiver_device());
  const absl::Time end = absl::Now() + kPatience;
  from_.reset();
  while (receiver().receiver_stats().connections > 0 && absl::Now() < end) {
    std::this_thread::yield();
  }
  EXPECT_EQ(receiver().receiver_stats().connections, 0);
  EXPECT_EQ(receiver().Close(1, absl::ZeroDuration()).code(), absl::StatusCode::kDeadlineExceeded);
  receiver_device().Hold(false);
  EXPECT_EQ(receiver().Close(1, kPatience), absl::OkStatus());
}

// Pages that the sender reads, once they are named, are its own until it has read them.
TEST_P(DeviceTransportTest, AnAbortedTransferWaitsForItsOwnDevice) {
  sender_device().Hold(true);
  Begin({1, 2});
  WaitUntilItHolds(sender_device());
  sender().Abort(transfer_);
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(sent_.Has());
  sender_device().Hold(false);
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kCancelled);
  EXPECT_EQ(sender().sender_stats().outstanding_bytes, 0);
}

// What the sender's device still has to do for a receiver that is gone is nobody else's business.
TEST_P(DeviceTransportTest, AReceiverThatGoesHoldsNothingUp) {
  sender_device().Hold(true);
  Side other(&network_, kLayout, 33);
  Begin({1, 2});
  WaitUntilItHolds(sender_device());
  to_.reset();
  const absl::Time end = absl::Now() + kPatience;
  while (sender().sender_stats().peers_lost == 0 && absl::Now() < end) std::this_thread::yield();
  Box<absl::Status> empty;
  from_->Begin(other.MakeLease(2, 0, {}), empty);
  EXPECT_EQ(empty.Wait(), absl::OkStatus());
  EXPECT_FALSE(sent_.Has()) << "its pages are read still";
  sender_device().Hold(false);
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kUnavailable);
  EXPECT_EQ(sender().sender_stats().outstanding_bytes, 0);
}

TEST_P(DeviceTransportTest, AReceiverWhoseDeviceFailsSaysSo) {
  receiver_device().FailNextBatch();
  Begin({1});
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(done_.Has());
  EXPECT_EQ(receiver().Close(1, kPatience), absl::OkStatus());
}

TEST_P(DeviceTransportTest, ASenderWhoseDeviceFailsEndsTheTransfer) {
  sender_device().FailNextBatch();
  Begin({1});
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kInternal);
  EXPECT_EQ(sender().sender_stats().outstanding_bytes, 0);
}

TEST_P(DeviceTransportTest, OnceADeviceHasFailedItIsKnown) {
  EXPECT_EQ(to_->transport->CheckDevice(kPatience), absl::OkStatus());
  receiver_device().Fail();
  Begin({1});
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kUnavailable);
  const absl::Status failed = absl::InternalError("the device failed");
  EXPECT_EQ(to_->transport->CheckDevice(kPatience), failed);
  EXPECT_EQ(from_->transport->CheckDevice(kPatience), absl::OkStatus());
  EXPECT_EQ(receiver().Close(1, kPatience), absl::OkStatus());
}

// The transport's thread hangs in the driver.
TEST_P(DeviceTransportTest, ACallThatDoesNotComeBackIsNoticed) {
  receiver_device().HoldCalls(true);
  Begin({1});
  WaitUntilItHolds(receiver_device());
  const absl::Time end = absl::Now() + kPatience;
  absl::Status status;
  while (status.ok() && absl::Now() < end) {
    status = to_->transport->CheckDevice(absl::Milliseconds(100));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(status.message().find("the KV transport: a pass of its thread has not ended for 1"), 0u)
      << status;
  receiver_device().HoldCalls(false);
}

// Processes of which one has a device and the other has not.
TEST(MixedTransportTest, DevicesAndProcessorsSendToEachOther) {
  for (const Medium medium : {Medium::kBest, Medium::kSharedMemory, Medium::kTcp}) {
    for (const bool device_sends : {true, false}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(medium) << device_sends);
      DeviceNetwork devices(medium);
      ProcessorNetwork processors(medium);
      TestNetwork* const sends = device_sends ? static_cast<TestNetwork*>(&devices) : &processors;
      TestNetwork* const receives =
          device_sends ? static_cast<TestNetwork*>(&processors) : &devices;
      Side from(sends, kLayout, 11), to(receives, kLayout, 22);
      const v1::Lease lease = to.MakeLease(1, 0, {6, 0, 3});
      Box<LeaseResult> done;
      Box<absl::Status> sent;
      ASSERT_EQ(to.Open(lease, 10, done), absl::OkStatus());
      ASSERT_EQ(
          from.transport->sender().Write(from.Begin(lease, sent), AllWrites(kLayout, lease, 2)),
          absl::OkStatus());
      EXPECT_EQ(sent.Wait(), absl::OkStatus());
      ExpectArrived(from, to, lease, 2);
    }
  }
}

// Writes down for whom its batches are.
class OrderedMover final : public PageMover {
 public:
  OrderedMover(std::vector<uint32_t>* order, std::shared_ptr<MemoryMoverFaults> faults)
      : order_(*order), mover_(std::move(faults)) {}
  void SetWake(std::function<void()> wake) override { mover_.SetWake(std::move(wake)); }
  absl::StatusOr<DeviceBuffer> AllocateStaging(size_t bytes) override {
    return mover_.AllocateStaging(bytes);
  }
  absl::StatusOr<DeviceBuffer> Map(const MemoryHandle& handle) override {
    return mover_.Map(handle);
  }
  bool HasRoom() const override { return mover_.HasRoom(); }
  absl::StatusOr<std::unique_ptr<PageBatch>> Queue(absl::Span<const PageCopy> copies,
                                                   StreamPoint after) override {
    order_.push_back(copies.front().key.offset);
    return mover_.Queue(copies, after);
  }

 private:
  std::vector<uint32_t>& order_;
  MemoryMover mover_;
};

// More peers than a device has room for batches: who has had one waits until all others have.
TEST(ManyPeersTest, ADeviceServesThemInTurn) {
  constexpr KvLayout kLarge{.layers = 64, .pages = 32, .page_rows = 1, .row_bytes = 8};
  constexpr uint64_t kPeers = 12;
  const auto faults = std::make_shared<MemoryMoverFaults>();
  std::vector<uint32_t> order;
  DeviceNetwork network(Medium::kBest);
  Pool pool(kLarge, 11);
  std::vector<std::unique_ptr<Side>> peers;
  std::vector<uint32_t> pages(kLarge.pages);
  std::iota(pages.begin(), pages.end(), 0u);
  {
    const auto from = *MakeSocketTransport({.memory = pool.memory(),
                                            .mover = std::make_unique<OrderedMover>(&order, faults),
                                            .incarnation = 11});
    const auto send = [&](uint64_t lease_id, Side& to, const std::vector<uint32_t>& pages) {
      const v1::Lease lease = to.MakeLease(lease_id, 0, pages);
      const auto rows = static_cast<int64_t>(pages.size());
      EXPECT_EQ(to.Open(lease, rows, {}), absl::OkStatus());
      Box<absl::Status> sent;
      const auto transfer = from->sender().Begin(
          lease, kPatience,
          [sent](TransferId, const absl::Status& status) mutable { sent.Put(status); });
      EXPECT_EQ(from->sender().Write(*transfer, AllWrites(kLarge, lease, 1)), absl::OkStatus());
      return sent;
    };
    for (uint64_t i = 0; i < kPeers; ++i) {
      Side& to = *peers.emplace_back(std::make_unique<Side>(&network, kLarge, 20 + i));
      EXPECT_EQ(CodeOf(send(100 + i, to, {0})), absl::StatusCode::kOk);  // it is connected
      ASSERT_EQ(to.transport->receiver().Close(100 + i, kPatience), absl::OkStatus());
    }
    order.clear();
    faults->Hold(true);
    std::vector<Box<absl::Status>> sent;
    for (uint64_t i = 0; i < kPeers; ++i) sent.push_back(send(1 + i, *peers[i], pages));
    faults->Hold(false);
    for (const Box<absl::Status>& box : sent) EXPECT_EQ(CodeOf(box), absl::StatusCode::kOk);
  }
  EXPECT_EQ(order.size(), kPeers * 4);
  // The first three were queued while not all had something to send.
  for (auto batch = order.begin() + 3; batch < order.end(); ++batch) {
    const auto next = std::find(batch + 1, order.end(), *batch);
    for (auto other = next; other < order.end(); ++other) {
      EXPECT_TRUE(std::find(batch, next, *other) != next)
          << "batch " << next - order.begin() << " is for whom batch " << batch - order.begin()
          << " was for, and somebody else waits";
    }
  }
}

// The same at the other end, in all media.
TEST(ManyPeersTest, AReceiverTakesFromAllOfThem) {
  constexpr KvLayout kMany{.layers = 32, .pages = 12 * 32, .page_rows = 1, .row_bytes = 8};
  for (const Medium medium : {Medium::kBest, Medium::kSharedMemory, Medium::kTcp}) {
    SCOPED_TRACE(static_cast<int>(medium));
    DeviceNetwork network(medium);
    Side to(&network, kMany, 11);
    std::vector<std::unique_ptr<Side>> peers;
    std::vector<Box<absl::Status>> sent;
    network.faults[0]->Hold(true);
    for (uint32_t i = 0; i < 12; ++i) {
      Side& from = *peers.emplace_back(std::make_unique<Side>(&network, kMany, 20 + i));
      std::vector<uint32_t> pages(32);
      std::iota(pages.begin(), pages.end(), 32 * i);
      const v1::Lease lease = to.MakeLease(i + 1, 0, pages);
      ASSERT_EQ(to.Open(lease, 32, {}), absl::OkStatus());
      const TransferId transfer = from.Begin(lease, sent.emplace_back());
      ASSERT_EQ(from.transport->sender().Write(transfer, AllWrites(kMany, lease, 1)),
                absl::OkStatus());
    }
    network.faults[0]->Hold(false);
    for (const Box<absl::Status>& box : sent) EXPECT_EQ(CodeOf(box), absl::StatusCode::kOk);
  }
}

using MappedTransportTest = DeviceTransportTest;
INSTANTIATE_TEST_SUITE_P(Media, MappedTransportTest, testing::Values(Medium::kBest));

// A sender that gave its pages up (its transfer ended, the receiver being slow) may fill them with
// something else while the receiver still reads: what arrives is refused, not decoded.
TEST_P(MappedTransportTest, PagesThatChangeUnderTheReceiverAreRefused) {
  receiver_device().Hold(true);
  Begin({1, 2});
  WaitUntilItHolds(receiver_device());
  for (std::byte& byte : from_->pool.memory().Rows(0, 0, 4)) byte ^= std::byte{1};
  receiver_device().Hold(false);
  const auto result = done_.Wait();
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->status.code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace sluice::transport
