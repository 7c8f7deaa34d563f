#include "services/transport/kv_transfer_cases.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>
#include <utility>

namespace sluice::transport {

Pool::Pool(const KvLayout& layout, uint64_t seed)
    : bytes_(AllocateMappable(
          static_cast<size_t>(layout.layers * layout.pages * layout.page_bytes()))) {
  std::mt19937_64 random(seed);
  auto* const bytes = bytes_.As<std::byte>();
  for (size_t at = 0; at < bytes_.bytes; at += sizeof(uint64_t)) {
    const uint64_t drawn = random();
    std::memcpy(bytes + at, &drawn, std::min(sizeof(drawn), bytes_.bytes - at));
  }
  memory_.layout = layout;
  memory_.handle = bytes_.handle;
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    memory_.layers.push_back(bytes + layer * layout.pages * layout.page_bytes());
  }
}

std::string Pool::Copy() const { return {bytes_.As<char>(), bytes_.bytes}; }

std::string Pool::Rows(int64_t layer, int64_t page, int64_t rows) const {
  const absl::Span<std::byte> bytes = memory_.Rows(layer, page, rows);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

v1::Lease Side::MakeLease(uint64_t id, uint32_t first_page,
                          const std::vector<uint32_t>& pages) const {
  v1::Lease lease;
  lease.set_lease(id);
  lease.set_checksum_key(id * 0x9E3779B97F4A7C15u);
  lease.set_first_page(first_page);
  lease.mutable_pages()->Add(pages.begin(), pages.end());
  lease.set_endpoint(transport->receiver().endpoint());
  lease.set_incarnation(transport->receiver().incarnation());
  return lease;
}

absl::Status Side::Open(const v1::Lease& lease, int64_t rows, Box<LeaseResult> done) {
  return transport->receiver().Open(
      lease, rows, [done](const LeaseResult& result) mutable { done.Put(result); });
}

TransferId Side::Begin(const v1::Lease& lease, Box<absl::Status> sent, absl::Duration timeout) {
  const auto transfer = transport->sender().Begin(
      lease, timeout, [sent](TransferId, const absl::Status& status) mutable { sent.Put(status); });
  EXPECT_TRUE(transfer.ok()) << transfer.status();
  return transfer.value_or(0);
}

std::vector<PageWrite> AllWrites(const KvLayout& layout, const v1::Lease& lease,
                                 int64_t rows_of_last) {
  std::vector<PageWrite> writes;
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    for (int64_t i = 0; i < lease.pages_size(); ++i) {
      writes.push_back({.layer = layer,
                        .index = lease.first_page() + i,
                        .page = i,
                        .rows = i + 1 == lease.pages_size() ? rows_of_last : layout.page_rows});
    }
  }
  return writes;
}

void WaitForPages(const Side& to, int64_t pages) {
  const absl::Time end = absl::Now() + kPatience;
  while (to.transport->receiver().receiver_stats().pages_received < pages) {
    ASSERT_LT(absl::Now(), end) << "only "
                                << to.transport->receiver().receiver_stats().pages_received
                                << " of " << pages << " pages came";
    std::this_thread::yield();
  }
}

absl::StatusCode CodeOf(Box<absl::Status> sent) {
  const std::optional<absl::Status> status = sent.Wait();
  EXPECT_TRUE(status.has_value()) << "the transfer did not end";
  return status.value_or(absl::OkStatus()).code();
}

void ExpectArrived(const Side& from, const Side& to, const v1::Lease& lease, int64_t rows_of_last) {
  const KvLayout& layout = from.pool.memory().layout;
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    for (int64_t i = 0; i < lease.pages_size(); ++i) {
      const int64_t rows = i + 1 == lease.pages_size() ? rows_of_last : layout.page_rows;
      EXPECT_TRUE(from.pool.Rows(layer, i, rows) ==
                  to.pool.Rows(layer, lease.pages(static_cast<int>(i)), rows))
          << "layer " << layer << ", page " << i << " of the lease";
    }
  }
}

namespace {

constexpr KvLayout kSmall{.layers = 3, .pages = 8, .page_rows = 4, .row_bytes = 40};
// More than may be outstanding at once.
constexpr KvLayout kLarge{.layers = 8, .pages = 24, .page_rows = 64, .row_bytes = 640};

uint64_t DroppedOrDamaged(const KvReceiverStats& stats) {
  return static_cast<uint64_t>(stats.dropped_unknown + stats.dropped_duplicate +
                               stats.dropped_outside + stats.dropped_incarnation + stats.damaged);
}

TEST_P(KvTransferTest, MovesLeasesOfEveryShape) {
  const struct {
    const char* name;
    KvLayout layout;
    uint32_t first_page;
    std::vector<uint32_t> pages;
    int64_t rows_of_last;
  } cases[] = {
      {"one row of one page of one layer", {1, 1, 1, 8}, 0, {0}, 1},
      {"one page, one row", {1, 4, 4, 40}, 0, {2}, 1},
      {"one page, all but one row", {1, 4, 4, 40}, 0, {2}, 3},
      {"one full page", {1, 4, 4, 40}, 0, {3}, 4},
      {"pages out of order, the last partial", {1, 8, 4, 40}, 0, {7, 0, 3}, 2},
      {"many layers", {17, 3, 4, 40}, 0, {1, 2}, 4},
      {"a cached prefix", {3, 8, 4, 40}, 5, {6, 1}, 3},
      {"rows that are no multiple of a word", {2, 3, 5, 7}, 1, {0, 2}, 3},
      {"the tiny model", {2, 6, 64, 640}, 0, {5, 0, 2}, 17},
      {"DeepSeek-V3", {2, 6, 64, 1152}, 3, {4, 1}, 64},
      {"more than may be outstanding", kLarge, 0, {}, 31},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Side from(network_.get(), c.layout, 11), to(network_.get(), c.layout, 22);
    std::vector<uint32_t> pages = c.pages;
    for (int64_t page = c.layout.pages - 1; c.pages.empty() && page >= 0; --page) {
      pages.push_back(static_cast<uint32_t>(page));
    }
    const v1::Lease lease = to.MakeLease(7, c.first_page, pages);
    const int64_t rows = (lease.pages_size() - 1) * c.layout.page_rows + c.rows_of_last;
    const std::string before = to.pool.Copy();

    Box<LeaseResult> done;
    Box<absl::Status> sent;
    ASSERT_EQ(to.Open(lease, rows, done), absl::OkStatus());
    const TransferId transfer = from.Begin(lease, sent);
    std::vector<PageWrite> writes = AllWrites(c.layout, lease, c.rows_of_last);
    std::shuffle(writes.begin(), writes.end(), std::mt19937(5));
    // In two calls, as two chunks of a prompt would come.
    const size_t half = writes.size() / 2;
    ASSERT_EQ(from.transport->sender().Write(transfer, absl::MakeConstSpan(writes).first(half)),
              absl::OkStatus());
    ASSERT_EQ(from.transport->sender().Write(transfer, absl::MakeConstSpan(writes).subspan(half)),
              absl::OkStatus());

    const auto result = done.Wait();
    ASSERT_TRUE(result.has_value());
    EXPECT_EQ(result->status, absl::OkStatus());
    EXPECT_EQ(result->lease, 7u);
    EXPECT_EQ(result->bytes, rows * c.layout.row_bytes * c.layout.layers);
    EXPECT_GE(result->duration, absl::ZeroDuration());
    EXPECT_EQ(sent.Wait(), absl::OkStatus());
    ExpectArrived(from, to, lease, c.rows_of_last);
    EXPECT_EQ(to.transport->receiver().Close(7, kPatience), absl::OkStatus());

    // Nothing else was touched: other pages, and the rows behind the last valid one.
    for (int64_t layer = 0; layer < c.layout.layers; ++layer) {
      for (int64_t page = 0; page < c.layout.pages; ++page) {
        const bool leased = std::count(pages.begin(), pages.end(), page) > 0;
        const bool last = leased && pages.back() == page;
        const int64_t valid = last ? c.rows_of_last : leased ? c.layout.page_rows : 0;
        const auto skip = static_cast<size_t>(valid * c.layout.row_bytes);
        const std::string now = to.pool.Rows(layer, page, c.layout.page_rows);
        const auto at =
            static_cast<size_t>((layer * c.layout.pages + page) * c.layout.page_bytes());
        EXPECT_TRUE(now.substr(skip) == before.substr(at + skip, now.size() - skip))
            << "layer " << layer << ", page " << page;
      }
    }
    const KvReceiverStats stats = to.transport->receiver().receiver_stats();
    EXPECT_EQ(stats.open_leases, 0);
    EXPECT_EQ(stats.closing_leases, 0);
    EXPECT_EQ(stats.pages_received, static_cast<int64_t>(writes.size()));
    EXPECT_EQ(stats.bytes_received, result->bytes);
    EXPECT_EQ(DroppedOrDamaged(stats), 0u);
    const KvSenderStats sender = from.transport->sender().sender_stats();
    EXPECT_EQ(sender.transfers, 0);
    EXPECT_EQ(sender.queued_pages, 0);
    EXPECT_EQ(sender.outstanding_bytes, 0);
  }
}

TEST_P(KvTransferTest, NothingToSendIsDoneAtOnce) {
  Side from(network_.get(), kSmall, 11), to(network_.get(), kSmall, 22);
  const v1::Lease lease = to.MakeLease(1, 6, {});
  Box<LeaseResult> done;
  Box<absl::Status> sent;
  ASSERT_EQ(to.Open(lease, 0, done), absl::OkStatus());
  from.Begin(lease, sent);
  const auto result = done.Wait();
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->status, absl::OkStatus());
  EXPECT_EQ(result->bytes, 0);
  EXPECT_EQ(sent.Wait(), absl::OkStatus());
}

TEST_P(KvTransferTest, RefusesLeasesThatCannotBe) {
  Side to(network_.get(), kSmall, 22);
  Box<LeaseResult> unused;
  ASSERT_EQ(to.Open(to.MakeLease(1, 0, {5}), 4, unused), absl::OkStatus());
  v1::Lease other_life = to.MakeLease(2, 0, {0});
  other_life.set_incarnation(23);
  const struct {
    const char* name;
    v1::Lease lease;
    int64_t rows;
    absl::StatusCode want;
  } cases[] = {
      {"page outside the pool", to.MakeLease(2, 0, {8}), 4, absl::StatusCode::kInvalidArgument},
      {"page twice", to.MakeLease(2, 0, {1, 2, 1}), 12, absl::StatusCode::kInvalidArgument},
      {"too many rows", to.MakeLease(2, 0, {1, 2}), 9, absl::StatusCode::kInvalidArgument},
      {"too few rows", to.MakeLease(2, 0, {1, 2}), 4, absl::StatusCode::kInvalidArgument},
      {"rows without pages", to.MakeLease(2, 0, {}), 1, absl::StatusCode::kInvalidArgument},
      {"negative rows", to.MakeLease(2, 0, {}), -1, absl::StatusCode::kInvalidArgument},
      {"first page too large", to.MakeLease(2, UINT32_MAX, {1}), 4,
       absl::StatusCode::kInvalidArgument},
      {"page of an open lease", to.MakeLease(2, 0, {4, 5}), 8,
       absl::StatusCode::kFailedPrecondition},
      {"another incarnation's", other_life, 4, absl::StatusCode::kFailedPrecondition},
      {"open already", to.MakeLease(1, 0, {2}), 4, absl::StatusCode::kAlreadyExists},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(to.Open(c.lease, c.rows, unused).code(), c.want) << c.name;
  }
  EXPECT_EQ(to.transport->receiver().Close(99, absl::ZeroDuration()), absl::OkStatus());
  // Closed, the page may be leased again, and under the same name.
  EXPECT_EQ(to.transport->receiver().Close(1, absl::ZeroDuration()), absl::OkStatus());
  EXPECT_EQ(to.Open(to.MakeLease(1, 0, {4, 5}), 8, unused), absl::OkStatus());
}

TEST_P(KvTransferTest, RefusesWritesThatCannotBe) {
  Side from(network_.get(), kSmall, 11), to(network_.get(), kSmall, 22);
  const v1::Lease lease = to.MakeLease(1, 2, {6, 7});
  Box<LeaseResult> done;
  Box<absl::Status> sent;
  ASSERT_EQ(to.Open(lease, 7, done), absl::OkStatus());
  const TransferId transfer = from.Begin(lease, sent);
  KvSender& sender = from.transport->sender();
  const PageWrite good{.layer = 0, .index = 2, .page = 0, .rows = 4};
  const struct {
    const char* name;
    PageWrite write;
    absl::StatusCode want;
  } cases[] = {
      {"layer too low", {-1, 2, 0, 4}, absl::StatusCode::kInvalidArgument},
      {"layer too high", {3, 2, 0, 4}, absl::StatusCode::kInvalidArgument},
      {"index before the lease", {0, 1, 0, 4}, absl::StatusCode::kInvalidArgument},
      {"index behind the lease", {0, 4, 0, 4}, absl::StatusCode::kInvalidArgument},
      {"page too low", {0, 3, -1, 4}, absl::StatusCode::kInvalidArgument},
      {"page too high", {0, 3, 8, 4}, absl::StatusCode::kInvalidArgument},
      {"no rows", {0, 3, 0, 0}, absl::StatusCode::kInvalidArgument},
      {"too many rows", {0, 3, 0, 5}, absl::StatusCode::kInvalidArgument},
      {"partial page in the middle", {0, 2, 0, 3}, absl::StatusCode::kInvalidArgument},
      {"twice in one call", good, absl::StatusCode::kAlreadyExists},
  };
  for (const auto& c : cases) {
    // All or none: the good one before it is not taken either.
    EXPECT_EQ(sender.Write(transfer, {good, c.write}).code(), c.want) << c.name;
  }
  EXPECT_EQ(sender.Write(transfer + 1, {good}).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(sender.Write(transfer, AllWrites(kSmall, lease, 3)), absl::OkStatus());
  EXPECT_EQ(sent.Wait(), absl::OkStatus());
  EXPECT_EQ(sender.Write(transfer, {good}).code(), absl::StatusCode::kNotFound);
  v1::Lease nonsense = lease;
  nonsense.set_endpoint("nonsense");
  EXPECT_EQ(
      sender.Begin(nonsense, kPatience, [](TransferId, const absl::Status&) {}).status().code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_P(KvTransferTest, DropsWritesOfUnknownLeases) {
  Side from(network_.get(), kSmall, 11), to(network_.get(), kSmall, 22);
  const std::string before = to.pool.Copy();
  const v1::Lease lease = to.MakeLease(1, 0, {1, 2});
  Box<absl::Status> sent;
  const TransferId transfer = from.Begin(lease, sent);
  ASSERT_EQ(from.transport->sender().Write(transfer, AllWrites(kSmall, lease, 4)),
            absl::OkStatus());
  EXPECT_EQ(CodeOf(sent), absl::StatusCode::kNotFound);
  const KvReceiverStats stats = to.transport->receiver().receiver_stats();
  EXPECT_GE(stats.dropped_unknown, 1);
  EXPECT_EQ(stats.bytes_received, 0);
  EXPECT_TRUE(before == to.pool.Copy());
}

TEST_P(KvTransferTest, CloseIsAFence) {
  Side from(network_.get(), kLarge, 11), to(network_.get(), kLarge, 22);
  std::vector<uint32_t> pages(static_cast<size_t>(kLarge.pages));
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<uint32_t>(i);
  const v1::Lease lease = to.MakeLease(1, 0, pages);
  Box<LeaseResult> done;
  Box<absl::Status> sent;
  ASSERT_EQ(to.Open(lease, kLarge.pages * kLarge.page_rows, done), absl::OkStatus());
  const TransferId transfer = from.Begin(lease, sent);
  std::vector<PageWrite> writes = AllWrites(kLarge, lease, kLarge.page_rows);
  const PageWrite last = writes.back();
  writes.pop_back();
  // In the middle of the stream of pages.
  ASSERT_EQ(from.transport->sender().Write(transfer, writes), absl::OkStatus());
  WaitForPages(to, 20);
  ASSERT_EQ(to.transport->receiver().Close(1, kPatience), absl::OkStatus());
  const std::string fenced = to.pool.Copy();
  (void)from.transport->sender().Write(transfer, {last});  // it may have ended by now
  EXPECT_EQ(CodeOf(sent), absl::StatusCode::kNotFound);
  EXPECT_TRUE(fenced == to.pool.Copy());
  EXPECT_FALSE(done.Has());
  EXPECT_EQ(to.transport->receiver().receiver_stats().closing_leases, 0);

  // The pages serve the next lease.
  const v1::Lease next = to.MakeLease(2, 0, {3});
  Box<LeaseResult> next_done;
  Box<absl::Status> next_sent;
  ASSERT_EQ(to.Open(next, 64, next_done), absl::OkStatus());
  const TransferId next_transfer = from.Begin(next, next_sent);
  ASSERT_EQ(from.transport->sender().Write(next_transfer, AllWrites(kLarge, next, 64)),
            absl::OkStatus());
  EXPECT_EQ(next_sent.Wait(), absl::OkStatus());
  ExpectArrived(from, to, next, 64);
}

TEST_P(KvTransferTest, TakesAPageOnce) {
  Side first(network_.get(), kSmall, 11), second(network_.get(), kSmall, 12),
      to(network_.get(), kSmall, 22);
  const v1::Lease lease = to.MakeLease(1, 0, {1, 2});
  Box<LeaseResult> done;
  Box<absl::Status> first_sent, second_sent;
  ASSERT_EQ(to.Open(lease, 8, done), absl::OkStatus());
  std::vector<PageWrite> writes = AllWrites(kSmall, lease, 4);
  const PageWrite last = writes.back();
  writes.pop_back();
  const TransferId transfer = first.Begin(lease, first_sent);
  ASSERT_EQ(first.transport->sender().Write(transfer, writes), absl::OkStatus());
  WaitForPages(to, static_cast<int64_t>(writes.size()));
  const TransferId late = second.Begin(lease, second_sent);
  ASSERT_EQ(second.transport->sender().Write(late, {writes[0]}), absl::OkStatus());
  EXPECT_EQ(CodeOf(second_sent), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(to.transport->receiver().receiver_stats().dropped_duplicate, 1);
  ASSERT_EQ(first.transport->sender().Write(transfer, {last}), absl::OkStatus());
  EXPECT_EQ(first_sent.Wait(), absl::OkStatus());
  EXPECT_EQ(done.Wait().value_or(LeaseResult{}).status, absl::OkStatus());
  ExpectArrived(first, to, lease, 4);
}

TEST_P(KvTransferTest, DropsPagesOutsideTheLease) {
  Side from(network_.get(), kSmall, 11), to(network_.get(), kSmall, 22);
  const std::string before = to.pool.Copy();
  Box<LeaseResult> done;
  Box<absl::Status> sent;
  ASSERT_EQ(to.Open(to.MakeLease(1, 4, {1, 2}), 8, done), absl::OkStatus());
  // The sender was told of other pages: one before the lease, one behind it.
  const v1::Lease wrong = to.MakeLease(1, 3, {1, 2, 0, 5});
  const TransferId transfer = from.Begin(wrong, sent);
  ASSERT_EQ(from.transport->sender().Write(transfer, {{0, 3, 0, 4}, {0, 6, 0, 4}}),
            absl::OkStatus());
  EXPECT_EQ(CodeOf(sent), absl::StatusCode::kInternal);
  EXPECT_GE(to.transport->receiver().receiver_stats().dropped_outside, 1);
  EXPECT_TRUE(before == to.pool.Copy());
}

TEST_P(KvTransferTest, ReportsDamage) {
  const struct {
    const char* name;
    uint64_t key_change;   // the same as damaged bytes, seen from the receiver
    int64_t rows_of_last;  // as the sender has it; the receiver leased 3
  } cases[] = {{"another checksum", 1, 3}, {"a row short", 0, 2}, {"a row long", 0, 4}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Side from(network_.get(), kSmall, 11), to(network_.get(), kSmall, 22);
    const v1::Lease lease = to.MakeLease(1, 0, {1, 2});
    Box<LeaseResult> done;
    Box<absl::Status> sent;
    ASSERT_EQ(to.Open(lease, 7, done), absl::OkStatus());
    v1::Lease changed = lease;
    changed.set_checksum_key(lease.checksum_key() ^ c.key_change);
    const TransferId transfer = from.Begin(changed, sent);
    ASSERT_EQ(from.transport->sender().Write(transfer, AllWrites(kSmall, lease, c.rows_of_last)),
              absl::OkStatus());
    const auto result = done.Wait();
    ASSERT_TRUE(result.has_value());
    EXPECT_EQ(result->status.code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(CodeOf(sent), absl::StatusCode::kDataLoss);
    EXPECT_EQ(to.transport->receiver().Close(1, kPatience), absl::OkStatus());
    EXPECT_GE(to.transport->receiver().receiver_stats().damaged, 1);
  }
}

TEST_P(KvTransferTest, AbortEndsATransferMidway) {
  Side from(network_.get(), kLarge, 11), to(network_.get(), kLarge, 22);
  std::vector<uint32_t> pages(static_cast<size_t>(kLarge.pages));
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<uint32_t>(i);
  const v1::Lease lease = to.MakeLease(1, 0, pages);
  Box<LeaseResult> done;
  Box<absl::Status> sent;
  ASSERT_EQ(to.Open(lease, kLarge.pages * kLarge.page_rows, done), absl::OkStatus());
  const TransferId transfer = from.Begin(lease, sent);
  std::vector<PageWrite> writes = AllWrites(kLarge, lease, kLarge.page_rows);
  writes.pop_back();
  ASSERT_EQ(from.transport->sender().Write(transfer, writes), absl::OkStatus());
  from.transport->sender().Abort(transfer);
  EXPECT_EQ(CodeOf(sent), absl::StatusCode::kCancelled);
  from.transport->sender().Abort(transfer);  // nothing happens
  EXPECT_EQ(from.transport->sender().Write(transfer, {writes[0]}).code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(done.Has());
  EXPECT_EQ(to.transport->receiver().Close(1, kPatience), absl::OkStatus());
}

TEST_P(KvTransferTest, TransfersHaveADeadline) {
  Side from(network_.get(), kSmall, 11), to(network_.get(), kSmall, 22);
  const v1::Lease lease = to.MakeLease(1, 0, {1});
  Box<LeaseResult> done;
  Box<absl::Status> sent;
  ASSERT_EQ(to.Open(lease, 4, done), absl::OkStatus());
  from.Begin(lease, sent, absl::Milliseconds(30));  // and nothing is written
  EXPECT_EQ(CodeOf(sent), absl::StatusCode::kDeadlineExceeded);
}

TEST_P(KvTransferTest, ARestartedReceiverIsAnError) {
  Side from(network_.get(), kSmall, 11);
  auto to = std::make_unique<Side>(network_.get(), kSmall, 22);
  const v1::Lease stale = to->MakeLease(1, 0, {1});
  Box<LeaseResult> done, new_done;
  Box<absl::Status> sent, stale_sent, new_sent;
  ASSERT_EQ(to->Open(stale, 4, done), absl::OkStatus());
  ASSERT_EQ(from.transport->sender().Write(from.Begin(stale, sent), AllWrites(kSmall, stale, 4)),
            absl::OkStatus());
  ASSERT_EQ(sent.Wait(), absl::OkStatus());

  to.reset();
  to = std::make_unique<Side>(network_.get(), kSmall, 23);
  const std::string before = to->pool.Copy();
  const v1::Lease lease = to->MakeLease(1, 0, {1});  // even under the same name
  ASSERT_EQ(to->Open(lease, 4, new_done), absl::OkStatus());
  const TransferId transfer = from.Begin(stale, stale_sent);
  (void)from.transport->sender().Write(transfer, AllWrites(kSmall, stale, 4));
  EXPECT_EQ(CodeOf(stale_sent), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(before == to->pool.Copy());
  ASSERT_EQ(
      from.transport->sender().Write(from.Begin(lease, new_sent), AllWrites(kSmall, lease, 4)),
      absl::OkStatus());
  EXPECT_EQ(new_sent.Wait(), absl::OkStatus());
  ExpectArrived(from, *to, lease, 4);
}

TEST_P(KvTransferTest, NoticesThatTheReceiverHasGone) {
  Side from(network_.get(), kSmall, 11);
  auto to = std::make_unique<Side>(network_.get(), kSmall, 22);
  const v1::Lease lease = to->MakeLease(1, 0, {1, 2});
  Box<LeaseResult> done;
  Box<absl::Status> sent;
  ASSERT_EQ(to->Open(lease, 8, done), absl::OkStatus());
  const TransferId transfer = from.Begin(lease, sent);
  ASSERT_EQ(from.transport->sender().Write(transfer, {{0, 0, 0, 4}}), absl::OkStatus());
  WaitForPages(*to, 1);
  to.reset();
  const absl::Time gone = absl::Now();
  EXPECT_EQ(CodeOf(sent), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - gone, absl::Seconds(3));  // 1 s, and a busy machine
}

TEST_P(KvTransferTest, ManySendersAndLeasesAtOnce) {
  constexpr int kSenders = 2, kLeases = 4;
  Side to(network_.get(), kLarge, 22);
  std::vector<std::unique_ptr<Side>> senders;
  struct Leg {
    v1::Lease lease;
    Box<LeaseResult> done;
    Box<absl::Status> sent;
    TransferId transfer = 0;
  };
  std::vector<std::unique_ptr<Leg>> legs;
  for (uint64_t s = 0; s < kSenders; ++s) {
    senders.push_back(std::make_unique<Side>(network_.get(), kLarge, 11 + s));
    for (uint64_t l = 0; l < kLeases; ++l) {
      const auto first = static_cast<uint32_t>((s * kLeases + l) * 3);
      legs.push_back(std::make_unique<Leg>());
      Leg& leg = *legs.back();
      leg.lease = to.MakeLease(100 + s * kLeases + l, 2, {first + 2, first, first + 1});
      ASSERT_EQ(to.Open(leg.lease, 2 * 64 + 9, leg.done), absl::OkStatus());
      leg.transfer = senders[s]->Begin(leg.lease, leg.sent);
    }
  }
  // Layer by layer, all requests in each, as steps do.
  for (int64_t layer = 0; layer < kLarge.layers; ++layer) {
    for (size_t i = 0; i < legs.size(); ++i) {
      const std::vector<PageWrite> all = AllWrites(kLarge, legs[i]->lease, 9);
      ASSERT_EQ(senders[i / kLeases]->transport->sender().Write(
                    legs[i]->transfer, absl::MakeConstSpan(all).subspan(layer * 3, 3)),
                absl::OkStatus());
    }
  }
  for (size_t i = 0; i < legs.size(); ++i) {
    EXPECT_EQ(legs[i]->sent.Wait(), absl::OkStatus());
    EXPECT_EQ(
        legs[i]->done.Wait().value_or(LeaseResult{.status = absl::UnknownError("none")}).status,
        absl::OkStatus());
    ExpectArrived(*senders[i / kLeases], to, legs[i]->lease, 9);
  }
}

TEST_P(KvTransferTest, EndsTransfersWhenItIsClosed) {
  Side to(network_.get(), kSmall, 22);
  Box<absl::Status> sent;
  Box<LeaseResult> done;
  const v1::Lease lease = to.MakeLease(1, 0, {1});
  ASSERT_EQ(to.Open(lease, 4, done), absl::OkStatus());
  {
    Side from(network_.get(), kSmall, 11);
    from.Begin(lease, sent);
  }
  ASSERT_TRUE(sent.Has());
  EXPECT_EQ(sent.Wait()->code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(to.transport->receiver().Close(1, kPatience), absl::OkStatus());
}

}  // namespace
}  // namespace sluice::transport
