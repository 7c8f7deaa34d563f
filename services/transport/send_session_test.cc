// A sender's end of a connection, with a socket pair for the receiver's.
#include "services/transport/send_session.h"

#include <sys/socket.h>

#include <cstring>
#include <optional>
#include <string>

#include <gtest/gtest.h>

#include "services/transport/kv_transfer_cases.h"

namespace sluice::transport {

// Of the common cases only what they are made of is used here.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(KvTransferTest);

namespace {

constexpr KvLayout kLayout{.layers = 8, .pages = 1, .page_rows = 4, .row_bytes = 40};

class SendSessionTest : public testing::TestWithParam<bool> {
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
    std::optional<SharedRing> ring;
    if (GetParam()) ring.emplace(*SharedRing::Create(kLayout));
    session_.emplace(&context_, &transfers_, transfers_.NewPeers().front(), std::move(ring));
  }
  template <typename T>
  absl::Status Hear(const T& message) {
    std::string bytes;
    AppendMessage(message, &bytes);
    std::memcpy(session_->Room().data(), bytes.data(), bytes.size());
    return session_->Arrived(bytes.size());
  }

  const SessionContext context_{.layout = kLayout, .incarnation = 1};
  Pool pool_;
  TransferTable transfers_;
  std::optional<SocketLink> link_;
  FileDescriptor receiver_;
  std::optional<SendSession> session_;
  std::optional<absl::Status> sent_;
};

INSTANTIATE_TEST_SUITE_P(Media, SendSessionTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "shared_memory" : "tcp"; });

// A page that had been taken when the connection broke was never given back.
TEST_P(SendSessionTest, GivesBackWhatItTookWhenTheConnectionBreaks) {
  ASSERT_EQ(session_->Greet(&*link_), absl::OkStatus());
  ASSERT_EQ(*session_->Pump(&*link_), false) << "not welcome yet";
  ASSERT_EQ(Hear(Welcome{}), absl::OkStatus());
  receiver_ = FileDescriptor();
  const absl::StatusOr<bool> pumped = session_->Pump(&*link_);
  ASSERT_EQ(pumped.status().code(), absl::StatusCode::kUnavailable);
  session_->Fail(pumped.status());
  transfers_.RunEnded();
  ASSERT_TRUE(sent_.has_value());
  EXPECT_EQ(sent_->code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(transfers_.stats().outstanding_bytes, 0);
  EXPECT_EQ(transfers_.stats().queued_pages, 0);
}

TEST_P(SendSessionTest, BelievesNoMoreSlotsThanThereAre) {
  ASSERT_EQ(session_->Greet(&*link_), absl::OkStatus());
  ASSERT_EQ(Hear(Welcome{}), absl::OkStatus());
  ASSERT_TRUE(*session_->Pump(&*link_));
  if (GetParam()) {
    EXPECT_EQ(Hear(Consumed{.pages = 8}), absl::OkStatus());
    EXPECT_EQ(Hear(Consumed{.pages = 7}).code(), absl::StatusCode::kUnavailable) << "fewer";
  }
  EXPECT_EQ(Hear(Consumed{.pages = 9}).code(), absl::StatusCode::kUnavailable);
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
