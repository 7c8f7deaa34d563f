#include "services/transport/send_session.h"

#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/transport/page_checksum.h"

namespace sluice::transport {
namespace {

constexpr int kPagesAtOnce = 16;     // between two looks at what has come
constexpr int kPagesPerMessage = 4;  // of a ring: the receiver begins while more are copied
constexpr int kPagesOfPool = 256;    // told of between two looks: their messages are small
constexpr absl::Duration kPingEvery = absl::Milliseconds(200);
// Until a receiver that answers has read a page that it was told of: its own steps come between.
constexpr absl::Duration kReadWithin = absl::Seconds(5);

template <typename T>
void Queue(const T& message, SocketLink* link) {
  std::string bytes;
  AppendMessage(message, &bytes);
  link->Queue(bytes);
}

absl::Status OutOfOrder(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat("the receiver is out of order: ", what));
}

}  // namespace

SendSession::SendSession(const SessionContext* context, TransferTable* transfers,
                         const TransferTable::Peer& peer, std::optional<SharedRing> ring)
    : context_(*context), transfers_(*transfers), peer_(peer), ring_(std::move(ring)) {
  if (context_.mover != nullptr) {
    device_.emplace(context_.mover, transfers, peer.id, context_.checksums);
  }
}

SendSession::SendSession(const SessionContext* context, TransferTable* transfers,
                         const TransferTable::Peer& peer, std::shared_ptr<const MemoryHandle> pool,
                         int64_t pool_pages)
    : SendSession(context, transfers, peer, std::nullopt) {
  pool_ = std::move(pool);
  pool_pages_ = pool_pages;
}

absl::Status SendSession::Greet(SocketLink* link) {
  const KvLayout& layout = context_.layout;
  Hello hello{.incarnation = peer_.incarnation,
              .layers = layout.layers,
              .page_rows = layout.page_rows,
              .row_bytes = layout.row_bytes,
              .ring_slots = ring_.has_value() ? ring_->slots() : 0};
  if (ring_.has_value()) link->QueueDescriptors({ring_->descriptor()});
  if (pool_ != nullptr) {
    hello.pool_pages = static_cast<uint64_t>(pool_pages_);
    hello.pool_chunk_bytes = pool_->chunk_bytes;
    hello.pool_bytes = pool_->bytes;
    link->QueueDescriptors(pool_->descriptors);
  } else if (device_.has_value()) {
    SLUICE_ASSIGN_OR_RETURN(Staging staging, context_.staging->Take());
    device_->StageIn(std::move(staging));
  }
  Queue(hello, link);
  return absl::OkStatus();
}

absl::Status SendSession::Collect() {
  return device_.has_value() ? device_->Collect() : absl::OkStatus();
}

absl::StatusOr<bool> SendSession::Pump(SocketLink* link) {
  if (greet_again_) {
    greet_again_ = false;
    SLUICE_ASSIGN_OR_RETURN(SharedRing ring, SharedRing::Create(context_.layout));
    ring_.emplace(std::move(ring));
    SLUICE_RETURN_IF_ERROR(Greet(link));
  }
  SLUICE_RETURN_IF_ERROR(link->Flush());
  if (!welcome_) return false;
  if (device_.has_value()) return PumpDevice(link);
  return ring_.has_value() ? PumpRing(link) : PumpSocket(link);
}

absl::StatusOr<bool> SendSession::PumpDevice(SocketLink* link) {
  SLUICE_ASSIGN_OR_RETURN(bool worked, device_->Start());
  for (int i = 0; i < kPagesOfPool && SendFromDevice(link); ++i) worked = true;
  SLUICE_RETURN_IF_ERROR(link->Flush());
  return worked;
}

// False: nothing can be sent just now.
bool SendSession::SendFromDevice(SocketLink* link) {
  if (ring_.has_value() && shared_ - consumed_ >= ring_->slots()) return false;
  if (link->page_queued()) return false;
  if (page_.has_value()) {
    Heard();  // a page left: the peer reads
    device_->Return(*std::exchange(page_, std::nullopt));
  }
  std::optional<DevicePagesOut::Page> page = device_->Next();
  if (!page.has_value()) return false;
  const TransferTable::Job& job = page->job;
  Queue(
      PageMessage{
          .header = job.header, .bytes = job.bytes.size(), .page = static_cast<uint64_t>(job.page)},
      link);
  if (pool_ != nullptr) {
    ++shared_;
    unread_.push_back({.job = job, .at = time_});
  } else if (ring_.has_value()) {
    std::memcpy(ring_->Slot(shared_++), page->staged, job.bytes.size());
    device_->Return(*page);
  } else {
    link->QueuePage(job.bytes);
    page_ = *page;
  }
  return true;
}

absl::StatusOr<bool> SendSession::PumpRing(SocketLink* link) {
  int pages = 0;
  for (; pages < kPagesAtOnce && shared_ - consumed_ < ring_->slots(); ++pages) {
    // Before a page is taken: it would be lost with the connection.
    if (pages % kPagesPerMessage == 0) SLUICE_RETURN_IF_ERROR(link->Flush());
    std::optional<TransferTable::Job> job = transfers_.Take(peer_.id);
    if (!job.has_value()) break;
    std::byte* const slot = ring_->Slot(shared_++);
    if (context_.checksums) {
      job->header.checksum =
          CopyWithChecksum(job->checksum_key, job->header.tag(), job->bytes, slot);
    } else {
      std::memcpy(slot, job->bytes.data(), job->bytes.size());
    }
    Queue(PageMessage{.header = job->header, .bytes = job->bytes.size()}, link);
    transfers_.Sent(*job, absl::OkStatus());
  }
  SLUICE_RETURN_IF_ERROR(link->Flush());
  return pages > 0;
}

absl::StatusOr<bool> SendSession::PumpSocket(SocketLink* link) {
  for (int i = 0; i < kPagesAtOnce; ++i) {
    if (link->page_queued()) return i > 0;
    if (job_.has_value()) {
      // A page that left says that the peer reads: the answer to a ping may be far behind it.
      Heard();
      transfers_.Sent(*std::exchange(job_, std::nullopt), absl::OkStatus());
    }
    job_ = transfers_.Take(peer_.id);
    if (!job_.has_value()) return i > 0;
    if (context_.checksums) Seal(&*job_);
    Queue(PageMessage{.header = job_->header, .bytes = job_->bytes.size()}, link);
    link->QueuePage(job_->bytes);
    SLUICE_RETURN_IF_ERROR(link->Flush());
  }
  return true;
}

absl::Status SendSession::Arrived(size_t bytes) {
  reader_.Added(bytes);
  while (true) {
    const absl::StatusOr<std::optional<Message>> message = reader_.Next();
    if (!message.ok()) return OutOfOrder(message.status().message());
    if (!message->has_value()) return absl::OkStatus();
    SLUICE_RETURN_IF_ERROR(On(**message));
    Heard();
  }
}

absl::Status SendSession::On(const Message& message) {
  if (message.type == MessageType::kWelcome && !welcome_) {
    const Verdict verdict = message.As<Welcome>().verdict;
    if (verdict == Verdict::kOtherIncarnation) {
      return absl::UnavailableError("the receiver has been restarted since");
    }
    if (verdict == Verdict::kOtherLayout) {
      return absl::FailedPreconditionError(
          "the receiver's KV has another layout (layers, rows of a page or bytes of a row)");
    }
    if (verdict == Verdict::kNoStaging) {
      return absl::UnavailableError("the receiver has no pinned memory for another sender");
    }
    if (verdict == Verdict::kCannotMap && pool_ != nullptr) {
      pool_.reset();
      greet_again_ = true;
      return absl::OkStatus();
    }
    if (verdict != Verdict::kWelcome) return OutOfOrder("an unknown answer to the hello");
    welcome_ = true;
    return absl::OkStatus();
  }
  if (message.type == MessageType::kConsumed && (ring_.has_value() || pool_ != nullptr)) {
    const uint64_t pages = message.As<Consumed>().pages;
    if (pages < consumed_ || pages > shared_) {
      return OutOfOrder(
          absl::StrCat("it consumed ", pages, " pages, after ", consumed_, " of ", shared_));
    }
    for (; consumed_ < pages; ++consumed_) {
      if (pool_ == nullptr) continue;
      transfers_.Sent(unread_.front().job, absl::OkStatus());
      unread_.pop_front();
    }
    return absl::OkStatus();
  }
  if (message.type == MessageType::kAnswer && welcome_) {
    const auto answer = message.As<AnswerMessage>();
    transfers_.Answered(peer_.id, answer.transfer, answer.answer);
    return absl::OkStatus();
  }
  if (message.type == MessageType::kPong && welcome_) return absl::OkStatus();
  return OutOfOrder(
      absl::StrCat("a message of type ", static_cast<uint32_t>(message.type), " came"));
}

absl::Status SendSession::Tick(absl::Duration since_last, absl::Duration silence_max,
                               SocketLink* link) {
  time_ += since_last;
  if (!transfers_.Busy(peer_.id)) {
    silence_ = since_ping_ = absl::ZeroDuration();
    return absl::OkStatus();
  }
  if (!unread_.empty() && time_ - unread_.front().at >= kReadWithin) {
    return absl::UnavailableError(absl::StrCat("the receiver has not read a page for ",
                                               absl::FormatDuration(time_ - unread_.front().at)));
  }
  silence_ += since_last;
  since_ping_ += since_last;
  if (silence_ >= silence_max) {
    return absl::UnavailableError(
        absl::StrCat("the receiver has not been heard of for ", absl::FormatDuration(silence_)));
  }
  if (welcome_ && since_ping_ >= kPingEvery) {
    since_ping_ = absl::ZeroDuration();
    Queue(Ping{.number = ++pings_}, link);
  }
  return absl::OkStatus();
}

void SendSession::Fail(const absl::Status& status) {
  if (device_.has_value()) device_->Fail(status);
  for (const Told& told : std::exchange(unread_, {})) transfers_.Sent(told.job, status);
  if (job_.has_value()) transfers_.Sent(*std::exchange(job_, std::nullopt), status);
  transfers_.FailPeer(peer_.id, status);
}

}  // namespace sluice::transport
