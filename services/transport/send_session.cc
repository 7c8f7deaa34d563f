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
constexpr absl::Duration kPingEvery = absl::Milliseconds(200);

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

void SendSession::Greet(SocketLink* link) {
  const KvLayout& layout = context_.layout;
  if (ring_.has_value()) link->QueueDescriptor(ring_->descriptor());
  Queue(Hello{.incarnation = peer_.incarnation,
              .layers = layout.layers,
              .page_rows = layout.page_rows,
              .row_bytes = layout.row_bytes,
              .ring_slots = ring_.has_value() ? ring_->slots() : 0},
        link);
}

absl::StatusOr<bool> SendSession::Pump(SocketLink* link) {
  SLUICE_RETURN_IF_ERROR(link->Flush());
  if (!welcome_) return false;
  return ring_.has_value() ? PumpRing(link) : PumpSocket(link);
}

absl::StatusOr<bool> SendSession::PumpRing(SocketLink* link) {
  int pages = 0;
  for (; pages < kPagesAtOnce && in_ring_ - consumed_ < ring_->slots(); ++pages) {
    // Before a page is taken: it would be lost with the connection.
    if (pages % kPagesPerMessage == 0) SLUICE_RETURN_IF_ERROR(link->Flush());
    std::optional<TransferTable::Job> job = transfers_.Take(peer_.id);
    if (!job.has_value()) break;
    std::byte* const slot = ring_->Slot(in_ring_++);
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
    if (verdict != Verdict::kWelcome) return OutOfOrder("an unknown answer to the hello");
    welcome_ = true;
    return absl::OkStatus();
  }
  if (message.type == MessageType::kConsumed && ring_.has_value()) {
    const uint64_t pages = message.As<Consumed>().pages;
    if (pages < consumed_ || pages > in_ring_) {
      return OutOfOrder(
          absl::StrCat("it consumed ", pages, " pages, after ", consumed_, " of ", in_ring_));
    }
    consumed_ = pages;
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
  if (!transfers_.Busy(peer_.id)) {
    silence_ = since_ping_ = absl::ZeroDuration();
    return absl::OkStatus();
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
  if (job_.has_value()) transfers_.Sent(*std::exchange(job_, std::nullopt), status);
  transfers_.FailPeer(peer_.id, status);
}

}  // namespace sluice::transport
