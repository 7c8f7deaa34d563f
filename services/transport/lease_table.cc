#include "services/transport/lease_table.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice::transport {

struct LeaseTable::Lease {
  uint64_t key = 0;
  uint32_t first_page = 0;
  std::vector<uint32_t> pages;
  int64_t rows_of_last = 0;
  LeaseDone on_done;

  std::vector<bool> seen;  // [layer, page]: being copied or there
  int64_t missing = 0;     // (layer, page) pairs not verified yet
  int64_t in_flight = 0;   // copies, and the call of on_done
  bool ended = false;      // on_done was called, or is just being
  bool closing = false;
  int64_t bytes = 0;
  absl::Time first_arrival = absl::InfiniteFuture();

  bool Takes(const PageHeader& header) const {
    return header.index >= first_page && header.index - first_page < pages.size();
  }
  size_t Bit(const PageHeader& header) const {
    return header.layer * pages.size() + (header.index - first_page);
  }
};

LeaseTable::LeaseTable(KvMemory memory, uint64_t incarnation, std::function<void()> wake)
    : memory_(std::move(memory)),
      incarnation_(incarnation),
      wake_(std::move(wake)),
      leased_pages_(static_cast<size_t>(memory_.layout.pages)) {}

LeaseTable::~LeaseTable() = default;

LeaseTable::Lease* LeaseTable::Find(uint64_t lease) {
  const auto found = leases_.find(lease);
  return found == leases_.end() ? nullptr : found->second.get();
}

absl::Status LeaseTable::CheckPages(const v1::Lease& lease, int64_t rows) const {
  const int64_t page_rows = memory_.layout.page_rows;
  const int64_t count = lease.pages_size();
  if (rows < 0 || rows > count * page_rows || (rows + page_rows - 1) / page_rows != count) {
    return absl::InvalidArgumentError(absl::StrCat("lease ", lease.lease(), " has ", count,
                                                   " pages of ", page_rows,
                                                   " rows, which do not fit ", rows, " rows"));
  }
  if (lease.first_page() > UINT32_MAX - lease.pages_size()) {
    return absl::InvalidArgumentError(absl::StrCat("lease ", lease.lease(), ": first_page ",
                                                   lease.first_page(), " is too large"));
  }
  std::vector<uint32_t> sorted(lease.pages().begin(), lease.pages().end());
  std::sort(sorted.begin(), sorted.end());
  if (!sorted.empty() && sorted.back() >= memory_.layout.pages) {
    return absl::InvalidArgumentError(absl::StrCat("lease ", lease.lease(), ": page ",
                                                   sorted.back(), " of a pool of ",
                                                   memory_.layout.pages, " pages"));
  }
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("lease ", lease.lease(), ": page ", *twice, " is in it twice"));
  }
  for (uint32_t page : sorted) {
    if (leased_pages_[page]) {
      return absl::FailedPreconditionError(absl::StrCat(
          "lease ", lease.lease(), ": page ", page, " belongs to a lease that is not closed yet"));
    }
  }
  return absl::OkStatus();
}

absl::Status LeaseTable::Open(const v1::Lease& lease, int64_t rows, LeaseDone on_done) {
  bool ready = false;
  {
    const std::lock_guard lock(mutex_);
    if (lease.incarnation() != incarnation_) {
      return absl::FailedPreconditionError(absl::StrCat("lease ", lease.lease(),
                                                        " is of incarnation ", lease.incarnation(),
                                                        ", this process is ", incarnation_));
    }
    if (Find(lease.lease()) != nullptr) {
      return absl::AlreadyExistsError(absl::StrCat("lease ", lease.lease(), " is open"));
    }
    SLUICE_RETURN_IF_ERROR(CheckPages(lease, rows));
    auto entry = std::make_unique<Lease>();
    entry->key = lease.checksum_key();
    entry->first_page = lease.first_page();
    entry->pages.assign(lease.pages().begin(), lease.pages().end());
    entry->rows_of_last = rows - (lease.pages_size() - 1) * memory_.layout.page_rows;
    entry->on_done = std::move(on_done);
    entry->missing = memory_.layout.layers * lease.pages_size();
    entry->seen.resize(static_cast<size_t>(entry->missing));
    for (uint32_t page : entry->pages) leased_pages_[page] = true;
    if (entry->missing == 0) {
      ready = true;
      ready_.push_back(lease.lease());
    }
    leases_.emplace(lease.lease(), std::move(entry));
    ++stats_.open_leases;
  }
  if (ready) wake_();
  return absl::OkStatus();
}

void LeaseTable::Forget(uint64_t lease) {
  for (uint32_t page : leases_[lease]->pages) leased_pages_[page] = false;
  leases_.erase(lease);
}

void LeaseTable::Land(Lease* lease) {
  --lease->in_flight;
  if (lease->closing) landed_.notify_all();
}

absl::Status LeaseTable::Close(uint64_t lease, absl::Duration timeout) {
  std::unique_lock lock(mutex_);
  Lease* entry = Find(lease);
  if (entry == nullptr) return absl::OkStatus();
  if (!entry->closing) {
    entry->closing = true;
    --stats_.open_leases;
    ++stats_.closing_leases;
  }
  const auto idle = [&] {
    entry = Find(lease);  // somebody else may have closed it meanwhile
    return entry == nullptr || entry->in_flight == 0;
  };
  if (!landed_.wait_for(lock, absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(1))), idle)) {
    return absl::DeadlineExceededError(absl::StrCat("lease ", lease, " still has ",
                                                    entry->in_flight, " copies in flight after ",
                                                    absl::FormatDuration(timeout)));
  }
  if (entry == nullptr) return absl::OkStatus();
  Forget(lease);
  --stats_.closing_leases;
  return absl::OkStatus();
}

KvReceiverStats LeaseTable::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

absl::Span<std::byte> LeaseTable::Target(const Lease& lease, const PageHeader& header) const {
  const size_t at = header.index - lease.first_page;
  return memory_.Rows(header.layer, lease.pages[at],
                      at + 1 == lease.pages.size() ? lease.rows_of_last : memory_.layout.page_rows);
}

LeaseTable::Arrival LeaseTable::Start(const PageHeader& header, size_t bytes, absl::Time now) {
  LeaseResult result;
  LeaseDone on_done;
  {
    const std::lock_guard lock(mutex_);
    if (header.incarnation != incarnation_) {
      ++stats_.dropped_incarnation;
      return {.answer = Answer::kIncarnation};
    }
    Lease* lease = Find(header.lease);
    if (lease == nullptr || lease->closing || lease->ended) {
      ++stats_.dropped_unknown;
      return {.answer = Answer::kUnknownLease};
    }
    if (header.layer >= memory_.layout.layers || !lease->Takes(header)) {
      ++stats_.dropped_outside;
      return {.answer = Answer::kOutside};
    }
    if (lease->seen[lease->Bit(header)]) {
      ++stats_.dropped_duplicate;
      return {.answer = Answer::kDuplicate};
    }
    const absl::Span<std::byte> target = Target(*lease, header);
    lease->first_arrival = std::min(lease->first_arrival, now);
    ++lease->in_flight;
    if (target.size() == bytes) {
      lease->seen[lease->Bit(header)] = true;
      return {.target = target, .checksum_key = lease->key};
    }
    ++stats_.damaged;
    lease->ended = true;
    on_done = std::move(lease->on_done);
    result = {.lease = header.lease,
              .status = absl::DataLossError(
                  absl::StrCat("lease ", header.lease, ", layer ", header.layer, ", page ",
                               header.index, ": ", bytes, " bytes came, wanted ", target.size())),
              .bytes = lease->bytes,
              .duration = now - lease->first_arrival};
  }
  on_done(result);
  const std::lock_guard lock(mutex_);
  Land(Find(header.lease));
  return {.answer = Answer::kDamaged};
}

Answer LeaseTable::Finish(const PageHeader& header, Copy copy, absl::Time now) {
  Answer answer = Answer::kTaken;
  LeaseResult result{.lease = header.lease};
  LeaseDone on_done;
  {
    const std::lock_guard lock(mutex_);
    Lease* lease = Find(header.lease);
    if (lease->closing || lease->ended) {
      ++stats_.dropped_unknown;
      answer = Answer::kUnknownLease;
    } else if (copy == Copy::kBroken) {
      lease->seen[lease->Bit(header)] = false;
      answer = Answer::kBroken;
    } else if (copy == Copy::kDamaged) {
      ++stats_.damaged;
      answer = Answer::kDamaged;
      result.status = absl::DataLossError(
          absl::StrCat("lease ", header.lease, ", layer ", header.layer, ", page ", header.index,
                       ": the bytes that came do not have the checksum that the sender made"));
    } else {
      ++stats_.pages_received;
      const auto bytes = static_cast<int64_t>(Target(*lease, header).size());
      stats_.bytes_received += bytes;
      lease->bytes += bytes;
      if (--lease->missing == 0) answer = Answer::kComplete;
    }
    if (answer == Answer::kComplete || answer == Answer::kDamaged) {
      lease->ended = true;
      on_done = std::move(lease->on_done);
      result.bytes = lease->bytes;
      result.duration = now - lease->first_arrival;
    }
    if (on_done == nullptr) Land(lease);
  }
  if (on_done != nullptr) {
    on_done(result);
    const std::lock_guard lock(mutex_);
    Land(Find(header.lease));
  }
  return answer;
}

void LeaseTable::RunReady() {
  while (true) {
    LeaseResult result;
    LeaseDone on_done;
    {
      const std::lock_guard lock(mutex_);
      if (ready_.empty()) return;
      result.lease = ready_.back();
      ready_.pop_back();
      Lease* lease = Find(result.lease);
      if (lease == nullptr || lease->closing || lease->ended) continue;
      lease->ended = true;
      ++lease->in_flight;
      on_done = std::move(lease->on_done);
    }
    on_done(result);
    const std::lock_guard lock(mutex_);
    Land(Find(result.lease));
  }
}

}  // namespace sluice::transport
