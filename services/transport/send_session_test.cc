// A sender's end of a connection, with a socket pair for the receiver's.
#include "services/transport/send_session.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "services/transport/kv_transfer_cases.h"
#include "services/transport/memory_mover.h"
#include "services/transport/socket_transport.h"

namespace sluice::transport {

// Of the common cases only what they are made of is used here.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(KvTransferTest);

namespace {

constexpr KvLayout kLayout{.layers = 8, .pages = 1, .page_rows = 4, .row_bytes = 40};

// Over TCP, with a ring, and with the pool of a device.
class SendSessionTest : public testing::TestWithParam<Medium> {
 protected:
  SendSessionTest() : pool_(kLayout, 1), transfers_(pool_.memory(), {}, [] {}) {
    int sockets[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sockets), 0);
    link_.emplace(FileDescriptor(sockets[0]));
    receiver_ = FileDescriptor(sockets[1]);
    v1::Lease lease;
    lease.add_pages(0);
    const auto transfer = transfers_.Begin(
        lease, kPatience, [this](TransferId, const absl::Status& status) { sent_ = status; },
        absl::UnixEpoch());
    EXPECT_EQ(transfers_.Write(*transfer, AllWrites(kLayout, lease, 4)), absl::OkStatus());
    const TransferTable::Peer peer = transfers_.NewPeers().front();
    if (GetParam() == Medium::kBest) {
      context_.mover = &mover_;
      context_.staging = &staging_;
      session_.emplace(&context_, &transfers_, peer, pool_.memory().handle, kLayout.pages);
    } else {
      std::optional<SharedRing> ring;
      if (GetParam() == Medium::kSharedMemory) ring.emplace(*SharedRing::Create(kLayout));
      session_.emplace(&context_, &transfers_, peer, std::move(ring));
    }
  }
  template <typename T>
  absl::Status Hear(const T& message) {
    std::string bytes;
    AppendMessage(message, &bytes);
    std::memcpy(session_->Room().data(), bytes.data(), bytes.size());
    return session_->Arrived(bytes.size());
  }
  absl::StatusOr<bool> Pump() {
    const absl::Status collected = session_->Collect();
    return collected.ok() ? session_->Pump(&*link_) : collected;
  }
  // Sends all pages, as far as they are shared.
  void SharePages() {
    ASSERT_EQ(session_->Greet(&*link_), absl::OkStatus());
    ASSERT_EQ(Hear(Welcome{}), absl::OkStatus());
    size_t wanted = (sizeof(MessageHead) + sizeof(PageMessage)) * kLayout.layers + sizeof(Hello);
    while (wanted > 0) {
      ASSERT_EQ(Pump().status(), absl::OkStatus());
      char bytes[64];
      const ssize_t got = recv(receiver_.get(), bytes, std::min(wanted, sizeof(bytes)), 0);
      if (got > 0) wanted -= static_cast<size_t>(got);
    }
  }

  Pool pool_;
  MemoryMover mover_{std::make_shared<MemoryMoverFaults>()};
  StagingPool staging_{&mover_, kLayout};
  SessionContext context_{.layout = kLayout, .incarnation = 1};
  TransferTable transfers_;
  std::optional<SocketLink> link_;
  FileDescriptor receiver_;
  std::optional<SendSession> session_;
  std::optional<absl::Status> sent_;
};

INSTANTIATE_TEST_SUITE_P(Media, SendSessionTest,
                         testing::Values(Medium::kTcp, Medium::kSharedMemory, Medium::kBest),
                         [](const auto& info) {
                           return info.param == Medium::kTcp    ? "tcp"
                                  : info.param == Medium::kBest ? "pool"
                                                                : "shared_memory";
                         });

// A page that had been taken when the connection broke was never given back.
TEST_P(SendSessionTest, GivesBackWhatItTookWhenTheConnectionBreaks) {
  ASSERT_EQ(session_->Greet(&*link_), absl::OkStatus());
  ASSERT_EQ(*Pump(), false) << "not welcome yet";
  ASSERT_EQ(Hear(Welcome{}), absl::OkStatus());
  receiver_ = FileDescriptor();
  absl::StatusOr<bool> pumped = Pump();
  while (pumped.ok()) pumped = Pump();  // until the device has summed pages
  ASSERT_EQ(pumped.status().code(), absl::StatusCode::kUnavailable);
  session_->Fail(pumped.status());
  EXPECT_TRUE(session_->Settle(/*wait=*/true));
  transfers_.RunEnded();
  ASSERT_TRUE(sent_.has_value());
  EXPECT_EQ(sent_->code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(transfers_.stats().outstanding_bytes, 0);
  EXPECT_EQ(transfers_.stats().queued_pages, 0);
}

TEST_P(SendSessionTest, BelievesNoMorePagesThanThereAre) {
  if (GetParam() == Medium::kTcp) {
    ASSERT_EQ(session_->Greet(&*link_), absl::OkStatus());
    ASSERT_EQ(Hear(Welcome{}), absl::OkStatus());
    EXPECT_EQ(Hear(Consumed{.pages = 0}).code(), absl::StatusCode::kUnavailable);
    return;
  }
  SharePages();
  EXPECT_EQ(Hear(Consumed{.pages = 8}), absl::OkStatus());
  EXPECT_EQ(transfers_.stats().outstanding_bytes, 0);
  EXPECT_EQ(Hear(Consumed{.pages = 7}).code(), absl::StatusCode::kUnavailable) << "fewer";
  EXPECT_EQ(Hear(Consumed{.pages = 9}).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Hear(Consumed{.pages = UINT64_MAX}).code(), absl::StatusCode::kUnavailable);
}

TEST_P(SendSessionTest, BelievesNoPagesBeforeThereAreAny) {
  ASSERT_EQ(session_->Greet(&*link_), absl::OkStatus());
  EXPECT_EQ(Hear(Consumed{.pages = 1}).code(), absl::StatusCode::kUnavailable);
  ASSERT_EQ(Hear(Welcome{}), absl::OkStatus());
  EXPECT_EQ(Hear(Consumed{.pages = 1}).code(), absl::StatusCode::kUnavailable);
}

// Where the receiver reads pages out of the pool itself, and they are no copies of the sender's.
class PoolSendSessionTest : public SendSessionTest {};
INSTANTIATE_TEST_SUITE_P(Media, PoolSendSessionTest, testing::Values(Medium::kBest));

// Each page read makes it no younger that another one is not.
TEST_P(PoolSendSessionTest, AReceiverThatReadsAPageNowAndThenIsGivenUp) {
  SharePages();
  absl::Duration time;
  absl::Status status;
  for (uint64_t read = 0; status.ok() && time < absl::Minutes(1);) {
    ASSERT_EQ(Hear(Pong{}), absl::OkStatus());
    status = session_->Tick(absl::Milliseconds(100), absl::Milliseconds(900), &*link_);
    time += absl::Milliseconds(100);
    if (time == (read + 1) * absl::Seconds(4)) {
      ASSERT_EQ(Hear(Consumed{.pages = ++read}), absl::OkStatus());
    }
  }
  EXPECT_EQ(status, absl::UnavailableError("the receiver has not read a page for 5s"));
  EXPECT_EQ(time, absl::Seconds(5));
}

TEST_P(SendSessionTest, AReceiverWithoutPinnedMemoryIsTold) {
  ASSERT_EQ(session_->Greet(&*link_), absl::OkStatus());
  EXPECT_EQ(Hear(Welcome{.verdict = Verdict::kNoStaging}),
            absl::UnavailableError("the receiver has no pinned memory for another sender"));
}

TEST_P(SendSessionTest, PingsAndGivesUpWhileSomethingIsAsked) {
  ASSERT_EQ(session_->Greet(&*link_), absl::OkStatus());
  ASSERT_EQ(Hear(Welcome{}), absl::OkStatus());
  const absl::Duration silence_max = absl::Milliseconds(900);
  const auto tick = [&] { return session_->Tick(absl::Milliseconds(100), silence_max, &*link_); };
  for (int i = 0; i < 8; ++i) EXPECT_EQ(tick(), absl::OkStatus());
  // Four pings and nothing else: it was not pumped.
  EXPECT_EQ(link_->queued_bytes(), sizeof(MessageHead) * 5 + sizeof(Hello) + sizeof(Ping) * 4);
  ASSERT_EQ(Hear(Pong{.number = 4}), absl::OkStatus());
  for (int i = 0; i < 8; ++i) EXPECT_EQ(tick(), absl::OkStatus());
  EXPECT_EQ(tick().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace sluice::transport
