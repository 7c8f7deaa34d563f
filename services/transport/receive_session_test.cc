// What a receiver on a device believes of a sender that offers its pool.
#include "services/transport/receive_session.h"

#include <fcntl.h>

#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "services/transport/kv_transfer_cases.h"

namespace sluice::transport {

// Of the common cases only what they are made of is used here.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(KvTransferTest);

namespace {

constexpr KvLayout kLayout{.layers = 2, .pages = 3, .page_rows = 4, .row_bytes = 40};

template <typename T>
std::string Bytes(const T& message) {
  std::string bytes;
  AppendMessage(message, &bytes);
  return bytes;
}

class ReceiveSessionTest : public testing::Test {
 protected:
  ReceiveSessionTest() : leases_(to_.memory(), 1, [] {}) { Restart(&mover_); }

  void Restart(PageMover* mover) {
    session_.reset();
    context_ = {.layout = kLayout,
                .incarnation = 1,
                .mover = mover,
                .staging = mover ? &staging_ : nullptr};
    session_.emplace(&context_, &leases_, /*shares_memory=*/true);
  }
  Hello PoolHello() const {
    return {.incarnation = 1,
            .layers = kLayout.layers,
            .page_rows = kLayout.page_rows,
            .row_bytes = kLayout.row_bytes,
            .pool_pages = static_cast<uint64_t>(kLayout.pages),
            .pool_chunk_bytes = from_.memory().handle->chunk_bytes,
            .pool_bytes = from_.memory().handle->bytes};
  }
  static std::vector<FileDescriptor> Duplicate(const std::vector<int>& descriptors) {
    std::vector<FileDescriptor> copies;
    for (int descriptor : descriptors) copies.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    return copies;
  }
  std::vector<FileDescriptor> Chunks() const {
    return Duplicate(from_.memory().handle->descriptors);
  }
  absl::Status Hear(const std::string& bytes, std::vector<FileDescriptor> passed = {}) {
    said_.clear();
    std::memcpy(session_->Room().data(), bytes.data(), bytes.size());
    return session_->Arrived(bytes.size(), std::move(passed), absl::UnixEpoch(), &said_);
  }

  Pool from_{kLayout, 1}, to_{kLayout, 2};
  const std::shared_ptr<MemoryMoverFaults> faults_ = std::make_shared<MemoryMoverFaults>();
  MemoryMover mover_{faults_};
  StagingPool staging_{&mover_, kLayout, /*bytes_max=*/1};  // of one connection
  LeaseTable leases_;
  SessionContext context_;
  std::optional<ReceiveSession> session_;
  std::string said_;
};

TEST_F(ReceiveSessionTest, PoolsThatCannotBeMappedAreRefusedAndARingIsTakenInstead) {
  const FileDescriptor null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  Hello small = PoolHello(), huge = PoolHello(), chunks = PoolHello(), no_chunks = PoolHello();
  small.pool_bytes =
      static_cast<uint64_t>(kLayout.layers * kLayout.pages * kLayout.page_bytes()) - 1;
  huge.pool_pages = UINT64_MAX;
  chunks.pool_bytes = UINT64_MAX;
  no_chunks.pool_chunk_bytes = 0;
  const SharedRing ring = *SharedRing::Create(kLayout);
  for (const auto& [name, hello, good_descriptors, mover] :
       {std::tuple("too small", small, true, &mover_), std::tuple("overflow", huge, true, &mover_),
        std::tuple("more than its chunks", chunks, true, &mover_),
        std::tuple("no chunks", no_chunks, true, &mover_),
        std::tuple("no memory", PoolHello(), false, &mover_),
        std::tuple("no device here", PoolHello(), true, static_cast<MemoryMover*>(nullptr))}) {
    SCOPED_TRACE(name);
    Restart(mover);
    ASSERT_EQ(Hear(Bytes(hello), good_descriptors ? Chunks() : Duplicate({null.get(), null.get()})),
              absl::OkStatus());
    EXPECT_EQ(said_, Bytes(Welcome{.verdict = Verdict::kCannotMap}));
    EXPECT_FALSE(session_->welcome());
    Hello with_ring = PoolHello();
    with_ring.pool_pages = 0;
    with_ring.ring_slots = ring.slots();
    ASSERT_EQ(Hear(Bytes(with_ring), Duplicate({ring.descriptor()})), absl::OkStatus());
    EXPECT_EQ(said_, Bytes(Welcome{}));
    EXPECT_TRUE(session_->welcome());
  }
}

// To map one takes the driver a while.
TEST_F(ReceiveSessionTest, WhosePoolWasRefusedOffersNoOther) {
  faults_->RefuseMaps();
  ASSERT_EQ(Hear(Bytes(PoolHello()), Chunks()), absl::OkStatus());
  EXPECT_EQ(said_, Bytes(Welcome{.verdict = Verdict::kCannotMap}));
  EXPECT_EQ(Hear(Bytes(PoolHello()), Chunks()).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ReceiveSessionTest, WhoFindsNoPinnedMemoryIsToldSo) {
  const SharedRing ring = *SharedRing::Create(kLayout);
  Hello with_ring = PoolHello();
  with_ring.pool_pages = 0;
  with_ring.ring_slots = ring.slots();
  const auto greet = [&] { return Hear(Bytes(with_ring), Duplicate({ring.descriptor()})); };
  std::optional<Staging> other = *staging_.Take();
  ASSERT_EQ(greet(), absl::OkStatus());
  EXPECT_EQ(said_, Bytes(Welcome{.verdict = Verdict::kNoStaging}));
  EXPECT_FALSE(session_->welcome());
  EXPECT_EQ(greet().code(), absl::StatusCode::kInvalidArgument) << "greeted already";
  other.reset();
  Restart(&mover_);
  ASSERT_EQ(greet(), absl::OkStatus());
  EXPECT_EQ(said_, Bytes(Welcome{}));
}

TEST_F(ReceiveSessionTest, APoolComesWithItsMemory) {
  EXPECT_EQ(Hear(Bytes(PoolHello())).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ReceiveSessionTest, ReadsNothingOutsideThePool) {
  v1::Lease lease;
  lease.set_lease(5);
  lease.set_incarnation(1);
  lease.add_pages(1);
  ASSERT_EQ(leases_.Open(lease, 4, [](const LeaseResult&) {}), absl::OkStatus());
  ASSERT_EQ(Hear(Bytes(PoolHello()), Chunks()), absl::OkStatus());
  ASSERT_TRUE(session_->welcome());
  PageMessage page{.header = {.incarnation = 1, .lease = 5, .transfer = 9},
                   .bytes = static_cast<uint64_t>(kLayout.page_bytes()),
                   .page = 2};
  page.header.layer = 2;
  ASSERT_EQ(Hear(Bytes(page)), absl::OkStatus());
  EXPECT_EQ(said_, Bytes(AnswerMessage{.transfer = 9, .answer = Answer::kOutside}));
  page.header.layer = 0;
  page.page = 3;
  EXPECT_EQ(Hear(Bytes(page)).code(), absl::StatusCode::kInvalidArgument);
  page.page = UINT64_MAX;
  EXPECT_EQ(Hear(Bytes(page)).code(), absl::StatusCode::kInvalidArgument);
}

// Nothing that comes with or behind a bad message is copied, and nothing is left in flight: the
// lease can be closed, and the sender's memory let go.
TEST_F(ReceiveSessionTest, WhatCameBesideABadMessageIsForgotten) {
  v1::Lease lease;
  lease.set_lease(5);
  lease.set_incarnation(1);
  lease.add_pages(1);
  PageMessage page{.header = {.incarnation = 1, .lease = 5, .transfer = 9},
                   .bytes = static_cast<uint64_t>(kLayout.page_bytes()),
                   .page = 2};
  PageMessage unknown = page;
  unknown.header.lease = 6;
  for (const auto& [name, first] : {std::pair("taken", page), std::pair("skipped", unknown)}) {
    SCOPED_TRACE(name);
    Restart(&mover_);
    ASSERT_EQ(leases_.Open(lease, 4, [](const LeaseResult&) {}), absl::OkStatus());
    ASSERT_EQ(Hear(Bytes(PoolHello()), Chunks()), absl::OkStatus());
    EXPECT_EQ(Hear(Bytes(first) + std::string(64, 'x') + Bytes(page)).code(),
              absl::StatusCode::kInvalidArgument);
    session_->End(absl::UnixEpoch());
    EXPECT_FALSE(session_->busy());
    EXPECT_FALSE(session_->may_read());
    EXPECT_EQ(leases_.Close(5, absl::ZeroDuration()), absl::OkStatus());
  }
}

// A connection that ends while copies are in flight: those end, and messages that had come behind
// them are not obeyed any more.
TEST_F(ReceiveSessionTest, AfterTheEndOnlyCopiesInFlightAreFinished) {
  v1::Lease lease;
  lease.set_lease(5);
  lease.set_incarnation(1);
  for (int page = 0; page < 3; ++page) lease.add_pages(page);
  ASSERT_EQ(leases_.Open(lease, 3 * kLayout.page_rows, [](const LeaseResult&) {}),
            absl::OkStatus());
  ASSERT_EQ(Hear(Bytes(PoolHello()), Chunks()), absl::OkStatus());
  faults_->Hold(true);
  uint32_t sent = 0;
  for (; session_->may_read() && sent < 6; ++sent) {
    PageMessage page{.header = {.incarnation = 1, .lease = 5, .transfer = 9},
                     .bytes = static_cast<uint64_t>(kLayout.page_bytes()),
                     .page = sent % 3};
    page.header.layer = sent / 3;
    page.header.index = sent % 3;
    ASSERT_EQ(Hear(Bytes(page)), absl::OkStatus());
  }
  session_->End(absl::UnixEpoch());
  ASSERT_TRUE(session_->busy());
  EXPECT_EQ(leases_.Close(5, absl::ZeroDuration()).code(), absl::StatusCode::kDeadlineExceeded);
  faults_->Hold(false);
  while (session_->busy()) session_->Collect(absl::UnixEpoch(), &said_);
  EXPECT_EQ(leases_.Close(5, absl::ZeroDuration()), absl::OkStatus());
}

}  // namespace
}  // namespace sluice::transport
