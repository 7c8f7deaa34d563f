#include "services/transport/transfer_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/transport/page_checksum.h"

namespace sluice::transport {

struct TransferTable::Transfer {
  uint64_t lease = 0;
  uint64_t checksum_key = 0;
  uint64_t incarnation = 0;
  PeerId peer = 0;
  int64_t first_page = 0;
  int64_t pages = 0;
  std::vector<bool> written;  // [layer, page]
  absl::Time deadline;
  SentDone on_sent;

  int64_t outstanding = 0;  // pages taken and not Sent
  bool ended = false;
  absl::Status status;  // once ended

  size_t Bit(const PageWrite& write) const {
    return static_cast<size_t>(write.layer * pages + (write.index - first_page));
  }
};

struct TransferTable::PeerQueue {
  std::string endpoint;
  std::deque<QueuedPage> pages;
  int64_t outstanding_bytes = 0;
  int64_t transfers = 0;  // not ended
  bool lost = false;      // kept until its last job is Sent
  int64_t jobs = 0;
};

namespace {

absl::Status CheckRange(const char* field, int64_t value, int64_t begin, int64_t end) {
  if (value >= begin && value < end) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("page write: ", field, " is ", value, ", wanted ", begin, " to ", end - 1));
}

absl::Status StatusOf(Answer answer, uint64_t lease) {
  switch (answer) {
    case Answer::kTaken:
    case Answer::kComplete:
      return absl::OkStatus();
    case Answer::kUnknownLease:
      return absl::NotFoundError(
          absl::StrCat("lease ", lease, " is closed, or never was open, at the receiver"));
    case Answer::kDuplicate:
      return absl::FailedPreconditionError(
          absl::StrCat("lease ", lease, ": the receiver has got a page from somebody else"));
    case Answer::kOutside:
      return absl::InternalError(
          absl::StrCat("lease ", lease, ": the receiver leased other pages than it says"));
    case Answer::kIncarnation:
      return absl::UnavailableError(
          absl::StrCat("lease ", lease, ": the receiver has been restarted since"));
    case Answer::kDamaged:
      return absl::DataLossError(absl::StrCat("lease ", lease, ": the receiver got damaged bytes"));
    case Answer::kBroken:
      return absl::UnavailableError(
          absl::StrCat("lease ", lease, ": the receiver could not fetch a page"));
  }
  return absl::InternalError(
      absl::StrCat("lease ", lease, ": the receiver answered ", static_cast<uint32_t>(answer)));
}

}  // namespace

TransferTable::TransferTable(KvMemory memory, TransferLimits limits, std::function<void()> wake)
    : memory_(std::move(memory)), limits_(limits), wake_(std::move(wake)) {}

TransferTable::~TransferTable() = default;

TransferTable::Transfer* TransferTable::Find(TransferId transfer) {
  const auto found = transfers_.find(transfer);
  return found == transfers_.end() ? nullptr : found->second.get();
}

absl::StatusOr<TransferId> TransferTable::Begin(const v1::Lease& lease, absl::Duration timeout,
                                                SentDone on_sent, absl::Time now) {
  TransferId id = 0;
  {
    const std::lock_guard lock(mutex_);
    if (transfers_.size() >= limits_.transfers) {
      return absl::ResourceExhaustedError(
          absl::StrCat("lease ", lease.lease(), ": ", transfers_.size(),
                       " transfers are going on already, the limit is ", limits_.transfers));
    }
    auto [known, is_new] = peer_of_endpoint_.try_emplace(lease.endpoint(), next_peer_);
    if (is_new) {
      peers_.emplace(next_peer_, std::make_unique<PeerQueue>()).first->second->endpoint =
          lease.endpoint();
      new_peers_.push_back(
          {.id = next_peer_, .endpoint = lease.endpoint(), .incarnation = lease.incarnation()});
      ++next_peer_;
      ++stats_.peers;
    }
    auto transfer = std::make_unique<Transfer>();
    transfer->lease = lease.lease();
    transfer->checksum_key = lease.checksum_key();
    transfer->incarnation = lease.incarnation();
    transfer->peer = known->second;
    transfer->first_page = lease.first_page();
    transfer->pages = lease.pages_size();
    transfer->written.resize(static_cast<size_t>(memory_.layout.layers * lease.pages_size()));
    transfer->deadline = now + timeout;
    transfer->on_sent = std::move(on_sent);
    id = next_transfer_++;
    Transfer* raw = transfers_.emplace(id, std::move(transfer)).first->second.get();
    ++peers_[raw->peer]->transfers;
    ++stats_.transfers;
    if (raw->pages == 0) End(id, raw, absl::OkStatus());
  }
  wake_();
  return id;
}

absl::Status TransferTable::CheckWrite(const Transfer& transfer, const PageWrite& write) const {
  const KvLayout& layout = memory_.layout;
  const int64_t end = transfer.first_page + transfer.pages;
  SLUICE_RETURN_IF_ERROR(CheckRange("layer", write.layer, 0, layout.layers));
  SLUICE_RETURN_IF_ERROR(CheckRange("index", write.index, transfer.first_page, end));
  SLUICE_RETURN_IF_ERROR(CheckRange("page", write.page, 0, layout.pages));
  // Only the last page of a sequence may be partial.
  const int64_t rows_min = write.index + 1 == end ? 1 : layout.page_rows;
  SLUICE_RETURN_IF_ERROR(CheckRange("rows", write.rows, rows_min, layout.page_rows + 1));
  if (transfer.written[transfer.Bit(write)]) {
    return absl::AlreadyExistsError(absl::StrCat("page write: layer ", write.layer, ", index ",
                                                 write.index, " was written before"));
  }
  return absl::OkStatus();
}

absl::Status TransferTable::Write(TransferId id, absl::Span<const PageWrite> writes) {
  {
    const std::lock_guard lock(mutex_);
    Transfer* transfer = Find(id);
    if (transfer == nullptr || transfer->ended) {
      return absl::NotFoundError(absl::StrCat("transfer ", id, " has ended"));
    }
    for (size_t i = 0; i < writes.size(); ++i) {
      const absl::Status status = CheckWrite(*transfer, writes[i]);
      if (!status.ok()) {
        for (size_t j = 0; j < i; ++j) transfer->written[transfer->Bit(writes[j])] = false;
        return status;
      }
      transfer->written[transfer->Bit(writes[i])] = true;
    }
    std::deque<QueuedPage>& queue = peers_[transfer->peer]->pages;
    for (const PageWrite& write : writes) queue.push_back({.transfer = id, .write = write});
    stats_.queued_pages += static_cast<int64_t>(writes.size());
  }
  wake_();
  return absl::OkStatus();
}

void TransferTable::Abort(TransferId id) {
  {
    const std::lock_guard lock(mutex_);
    Transfer* transfer = Find(id);
    if (transfer == nullptr || transfer->ended) return;
    End(id, transfer, absl::CancelledError(absl::StrCat("transfer ", id, " was aborted")));
  }
  wake_();
}

KvSenderStats TransferTable::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

std::vector<TransferTable::Peer> TransferTable::NewPeers() {
  const std::lock_guard lock(mutex_);
  return std::exchange(new_peers_, {});
}

void TransferTable::End(TransferId id, Transfer* transfer, const absl::Status& status) {
  if (transfer->ended) return;
  transfer->ended = true;
  transfer->status = status;
  --peers_[transfer->peer]->transfers;
  --stats_.transfers;
  if (transfer->outstanding == 0) ended_.push_back(id);
}

std::optional<TransferTable::Job> TransferTable::Take(PeerId peer_id) {
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(peer_id);
  if (found == peers_.end()) return std::nullopt;
  PeerQueue* peer = found->second.get();
  while (!peer->pages.empty()) {
    const QueuedPage queued = peer->pages.front();
    const PageWrite& write = queued.write;
    Transfer* transfer = Find(queued.transfer);
    if (transfer != nullptr && !transfer->ended) {
      const absl::Span<const std::byte> bytes = memory_.Rows(write.layer, write.page, write.rows);
      const int64_t size = static_cast<int64_t>(bytes.size());
      if (peer->outstanding_bytes > 0 &&
          peer->outstanding_bytes + size > limits_.outstanding_bytes) {
        return std::nullopt;
      }
      peer->pages.pop_front();
      --stats_.queued_pages;
      ++transfer->outstanding;
      ++peer->jobs;
      peer->outstanding_bytes += size;
      stats_.outstanding_bytes += size;
      return Job{.peer = peer_id,
                 .checksum_key = transfer->checksum_key,
                 .header = {.incarnation = transfer->incarnation,
                            .lease = transfer->lease,
                            .transfer = queued.transfer,
                            .layer = static_cast<uint32_t>(write.layer),
                            .index = static_cast<uint32_t>(write.index)},
                 .bytes = bytes,
                 .page = write.page,
                 .after = write.after};
    }
    peer->pages.pop_front();  // of a transfer that has ended
    --stats_.queued_pages;
  }
  return std::nullopt;
}

void TransferTable::Sent(const Job& job, const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  const int64_t size = static_cast<int64_t>(job.bytes.size());
  PeerQueue* peer = peers_[job.peer].get();
  peer->outstanding_bytes -= size;
  stats_.outstanding_bytes -= size;
  if (--peer->jobs == 0 && peer->lost) peers_.erase(job.peer);
  Transfer* transfer = Find(job.header.transfer);
  --transfer->outstanding;
  if (transfer->ended) {
    if (transfer->outstanding == 0) ended_.push_back(job.header.transfer);
    return;
  }
  if (status.ok()) {
    stats_.bytes_sent += size;
  } else {
    End(job.header.transfer, transfer, status);
  }
}

void TransferTable::Answered(PeerId peer, TransferId id, Answer answer) {
  const std::lock_guard lock(mutex_);
  Transfer* transfer = Find(id);
  if (transfer == nullptr || transfer->peer != peer || answer == Answer::kTaken) return;
  End(id, transfer, StatusOf(answer, transfer->lease));
}

void TransferTable::FailPeer(PeerId peer_id, const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(peer_id);
  if (found == peers_.end() || found->second->lost) return;
  PeerQueue* peer = found->second.get();
  for (auto& [id, transfer] : transfers_) {
    if (transfer->peer == peer_id) End(id, transfer.get(), status);
  }
  stats_.queued_pages -= static_cast<int64_t>(peer->pages.size());
  peer->pages.clear();
  peer_of_endpoint_.erase(peer->endpoint);
  peer->lost = true;
  if (peer->jobs == 0) peers_.erase(found);
  --stats_.peers;
  ++stats_.peers_lost;
}

bool TransferTable::Busy(PeerId peer) const {
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(peer);
  return found != peers_.end() && (found->second->transfers > 0 || found->second->jobs > 0);
}

bool TransferTable::Expire(absl::Time now) {
  const std::lock_guard lock(mutex_);
  for (auto& [id, transfer] : transfers_) {
    if (now < transfer->deadline) continue;
    End(id, transfer.get(),
        absl::DeadlineExceededError(
            absl::StrCat("lease ", transfer->lease, ": its transfer was not complete in time")));
  }
  return !transfers_.empty();
}

void TransferTable::EndAll(const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  for (auto& [id, transfer] : transfers_) End(id, transfer.get(), status);
}

void TransferTable::RunEnded() {
  std::vector<std::pair<TransferId, std::unique_ptr<Transfer>>> ended;
  {
    const std::lock_guard lock(mutex_);
    for (TransferId id : std::exchange(ended_, {})) {
      ended.emplace_back(id, std::move(transfers_[id]));
      transfers_.erase(id);
    }
  }
  for (auto& [id, transfer] : ended) transfer->on_sent(id, transfer->status);
}

void Seal(TransferTable::Job* job) {
  job->header.checksum = PageChecksum(job->checksum_key, job->header.tag(), job->bytes);
}

}  // namespace sluice::transport
