// The in-process twin: the common cases, and the faults it can make.
#include "services/transport/in_process.h"

#include <optional>
#include <thread>
#include <utility>

#include "services/transport/kv_transfer_cases.h"

namespace sluice::transport {
namespace {

class InProcessTestNetwork final : public TestNetwork {
 public:
  std::unique_ptr<KvTransport> Join(const KvMemory& memory, uint64_t incarnation) override {
    return network.Join(memory, incarnation);
  }
  InProcessNetwork network{{}};
};

INSTANTIATE_TEST_SUITE_P(InProcess, KvTransferTest,
                         testing::Values(TestNetworkMaker{
                             "thread", [] { return std::make_unique<InProcessTestNetwork>(); }}),
                         NetworkName);

// Without a thread: the test moves everything, and time.
class FaultTest : public testing::Test, public TestNetwork {
 protected:
  std::unique_ptr<KvTransport> Join(const KvMemory& memory, uint64_t incarnation) override {
    return network_.Join(memory, incarnation);
  }

  absl::Status OpenAndWrite() {
    lease_ = to_->MakeLease(1, 0, {1, 2});
    EXPECT_EQ(to_->Open(lease_, 8, done_), absl::OkStatus());
    transfer_ = from_->Begin(lease_, sent_, absl::Seconds(10));
    return from_->transport->sender().Write(transfer_, AllWrites(kLayout, lease_, 4));
  }
  absl::Status Close(absl::Duration timeout) {
    return to_->transport->receiver().Close(1, timeout);
  }

  static constexpr KvLayout kLayout{.layers = 3, .pages = 4, .page_rows = 4, .row_bytes = 40};
  absl::Time now_ = absl::UnixEpoch();
  InProcessNetwork network_{{.own_thread = false, .now = [this] { return now_; }}};
  std::optional<Side> from_{std::in_place, this, kLayout, 11};
  std::optional<Side> to_{std::in_place, this, kLayout, 22};
  v1::Lease lease_;
  TransferId transfer_ = 0;
  Box<LeaseResult> done_;
  Box<absl::Status> sent_;
};

TEST_F(FaultTest, NothingHappensUntilItIsRun) {
  ASSERT_EQ(OpenAndWrite(), absl::OkStatus());
  EXPECT_EQ(to_->transport->receiver().receiver_stats().pages_received, 0);
  EXPECT_FALSE(done_.Has());
  EXPECT_FALSE(sent_.Has());
  network_.RunUntilIdle();
  ASSERT_TRUE(done_.Has());
  EXPECT_EQ(done_.Wait()->status, absl::OkStatus());
  ASSERT_TRUE(sent_.Has());
  EXPECT_EQ(*sent_.Wait(), absl::OkStatus());
  ExpectArrived(*from_, *to_, lease_, 4);
}

TEST_F(FaultTest, CloseWaitsForACopyInFlight) {
  network_.Hold(InProcessNetwork::HoldAt::kCopy);
  ASSERT_EQ(OpenAndWrite(), absl::OkStatus());
  network_.RunUntilIdle();
  EXPECT_EQ(network_.num_held(), 6);
  EXPECT_EQ(Close(absl::ZeroDuration()).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(to_->transport->receiver().receiver_stats().closing_leases, 1);
  // Its pages are not to be leased before it is closed.
  Box<LeaseResult> unused;
  EXPECT_EQ(to_->Open(to_->MakeLease(2, 0, {2}), 4, unused).code(),
            absl::StatusCode::kFailedPrecondition);

  absl::Status closed = absl::UnknownError("");
  std::thread closer([&] { closed = Close(kPatience); });
  network_.Release();
  network_.RunUntilIdle();
  closer.join();
  EXPECT_EQ(closed, absl::OkStatus());
  EXPECT_FALSE(done_.Has());
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kNotFound);
  EXPECT_EQ(to_->transport->receiver().receiver_stats().dropped_unknown, 6);
  EXPECT_EQ(to_->Open(to_->MakeLease(2, 0, {2}), 4, unused), absl::OkStatus());
}

TEST_F(FaultTest, MemoryIsReadUntilOnSent) {
  network_.Hold(InProcessNetwork::HoldAt::kSender);
  ASSERT_EQ(OpenAndWrite(), absl::OkStatus());
  network_.RunUntilIdle();
  from_->transport->sender().Abort(transfer_);
  network_.RunUntilIdle();
  EXPECT_FALSE(sent_.Has());
  EXPECT_EQ(from_->transport->sender().sender_stats().outstanding_bytes, 6 * 160);
  network_.Release();
  network_.RunUntilIdle();
  ASSERT_TRUE(sent_.Has());
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kCancelled);
  EXPECT_EQ(from_->transport->sender().sender_stats().outstanding_bytes, 0);
}

TEST_F(FaultTest, OneChangedBitIsDamage) {
  network_.CorruptNext(1);
  ASSERT_EQ(OpenAndWrite(), absl::OkStatus());
  network_.RunUntilIdle();
  ASSERT_TRUE(done_.Has());
  EXPECT_EQ(done_.Wait()->status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kDataLoss);
  EXPECT_EQ(to_->transport->receiver().receiver_stats().damaged, 1);
}

TEST_F(FaultTest, ABrokenConnectionIsMadeAnew) {
  network_.FailNext();
  ASSERT_EQ(OpenAndWrite(), absl::OkStatus());
  network_.RunUntilIdle();
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kUnavailable);
  EXPECT_EQ(from_->transport->sender().sender_stats().peers_lost, 1);
  EXPECT_FALSE(done_.Has());
  // The same lease once more: what came before is not sent twice, so it is for the caller to know.
  Box<absl::Status> again;
  const TransferId transfer = from_->Begin(lease_, again);
  ASSERT_EQ(from_->transport->sender().Write(transfer, AllWrites(kLayout, lease_, 4)),
            absl::OkStatus());
  network_.RunUntilIdle();
  EXPECT_EQ(CodeOf(again), absl::StatusCode::kOk);
  EXPECT_TRUE(done_.Has());
}

TEST_F(FaultTest, AKilledReceiverIsNoticedAndMakesNoCallbacks) {
  network_.Hold(InProcessNetwork::HoldAt::kCopy);
  ASSERT_EQ(OpenAndWrite(), absl::OkStatus());
  network_.RunUntilIdle();
  network_.Kill(to_->transport->receiver().endpoint());
  network_.Release();
  network_.RunUntilIdle();
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(done_.Has());
}

TEST_F(FaultTest, AKilledSenderLeavesTheLeaseOpenAndNoCopyInFlight) {
  network_.Hold(InProcessNetwork::HoldAt::kCopy);
  ASSERT_EQ(OpenAndWrite(), absl::OkStatus());
  network_.RunUntilIdle();
  network_.Kill(from_->transport->receiver().endpoint());
  network_.RunUntilIdle();
  EXPECT_FALSE(done_.Has());
  EXPECT_FALSE(sent_.Has());
  EXPECT_EQ(to_->transport->receiver().receiver_stats().open_leases, 1);
  EXPECT_EQ(Close(absl::ZeroDuration()), absl::OkStatus());
}

TEST_F(FaultTest, TimeIsTheTests) {
  network_.Hold(InProcessNetwork::HoldAt::kSender);
  ASSERT_EQ(OpenAndWrite(), absl::OkStatus());
  now_ += absl::Milliseconds(9'999);
  network_.RunUntilIdle();
  now_ += absl::Milliseconds(1);
  network_.RunUntilIdle();
  EXPECT_FALSE(sent_.Has());  // its memory is being read
  network_.Release();
  network_.RunUntilIdle();
  EXPECT_EQ(CodeOf(sent_), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(FaultTest, CallbacksMayAskForMore) {
  const v1::Lease first = to_->MakeLease(1, 0, {1}), second = to_->MakeLease(2, 0, {2});
  Box<LeaseResult> second_done;
  ASSERT_EQ(to_->Open(first, 4, done_), absl::OkStatus());
  ASSERT_EQ(to_->Open(second, 4, second_done), absl::OkStatus());
  KvSender& sender = from_->transport->sender();
  const auto transfer =
      sender.Begin(first, absl::Seconds(1), [&](TransferId, const absl::Status& status) {
        EXPECT_EQ(status, absl::OkStatus());
        EXPECT_EQ(sender.Write(from_->Begin(second, sent_), AllWrites(kLayout, second, 4)),
                  absl::OkStatus());
      });
  ASSERT_TRUE(transfer.ok());
  ASSERT_EQ(sender.Write(*transfer, AllWrites(kLayout, first, 4)), absl::OkStatus());
  network_.RunUntilIdle();
  EXPECT_TRUE(second_done.Has());
  EXPECT_TRUE(sent_.Has());
}

}  // namespace
}  // namespace sluice::transport
