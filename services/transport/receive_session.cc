#include "services/transport/receive_session.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/transport/page_checksum.h"

namespace sluice::transport {

absl::Status ReceiveSession::Arrived(size_t bytes, FileDescriptor passed, absl::Time now,
                                     std::string* out) {
  if (passed.valid()) {
    if (!shares_memory_ || greeted_ || passed_.valid()) {
      return absl::InvalidArgumentError("a descriptor that is not a hello's");
    }
    passed_ = std::move(passed);
  }
  reader_.Added(bytes);
  const uint64_t consumed = consumed_;
  while (true) {
    SLUICE_ASSIGN_OR_RETURN(const std::optional<Message> message, reader_.Next());
    if (!message.has_value()) break;
    SLUICE_RETURN_IF_ERROR(On(*message, now, out));
  }
  if (ring_.has_value() && consumed_ != consumed) AppendMessage(Consumed{.pages = consumed_}, out);
  return absl::OkStatus();
}

absl::Status ReceiveSession::On(const Message& message, absl::Time now, std::string* out) {
  if (message.type == MessageType::kHello && !greeted_) return OnHello(message.As<Hello>(), out);
  if (message.type == MessageType::kPage && welcome_) {
    return OnPage(message.As<PageMessage>(), message.page, now, out);
  }
  if (message.type == MessageType::kPing && welcome_) {
    AppendMessage(Pong{.number = message.As<Ping>().number}, out);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("a message of type ",
                                                 static_cast<uint32_t>(message.type),
                                                 welcome_   ? " from a sender"
                                                 : greeted_ ? " from one who is not welcome"
                                                            : " before the hello"));
}

absl::Status ReceiveSession::OnHello(const Hello& hello, std::string* out) {
  greeted_ = true;
  const KvLayout& layout = context_.layout;
  Welcome answer;
  if (hello.incarnation != context_.incarnation) {
    answer.verdict = Verdict::kOtherIncarnation;
  } else if (hello.layers != layout.layers || hello.page_rows != layout.page_rows ||
             hello.row_bytes != layout.row_bytes) {
    answer.verdict = Verdict::kOtherLayout;
  } else if (shares_memory_) {
    if (!passed_.valid()) return absl::InvalidArgumentError("a hello without memory for a ring");
    SLUICE_ASSIGN_OR_RETURN(auto ring,
                            SharedRing::Open(std::move(passed_), layout, hello.ring_slots));
    ring_.emplace(std::move(ring));
  } else {
    reader_.ExpectPages(static_cast<size_t>(layout.page_bytes()));
  }
  passed_ = FileDescriptor();
  welcome_ = answer.verdict == Verdict::kWelcome;
  AppendMessage(answer, out);
  return absl::OkStatus();
}

bool ReceiveSession::Copy(absl::Span<const std::byte> bytes, const LeaseTable::Arrival& arrival,
                          const PageHeader& header) const {
  if (context_.checksums) {
    return CopyWithChecksum(arrival.checksum_key, header.tag(), bytes, arrival.target.data()) ==
           header.checksum;
  }
  std::memcpy(arrival.target.data(), bytes.data(), bytes.size());
  return true;
}

absl::Status ReceiveSession::OnPage(const PageMessage& page, absl::string_view bytes,
                                    absl::Time now, std::string* out) {
  const auto* from = reinterpret_cast<const std::byte*>(bytes.data());
  if (ring_.has_value()) {
    if (page.bytes > static_cast<uint64_t>(context_.layout.page_bytes())) {
      return absl::InvalidArgumentError(absl::StrCat("a page of ", page.bytes, " bytes; they have ",
                                                     context_.layout.page_bytes(), " at most"));
    }
    from = ring_->Slot(consumed_);
  }
  const LeaseTable::Arrival arrival =
      leases_.Start(page.header, static_cast<size_t>(page.bytes), now);
  Answer answer = arrival.answer;
  if (answer == Answer::kTaken) {
    // What is verified is the copy: the sender could still change the ring.
    const bool intact = Copy({from, arrival.target.size()}, arrival, page.header);
    using Outcome = LeaseTable::Copy;
    answer = leases_.Finish(page.header, intact ? Outcome::kIntact : Outcome::kDamaged, now);
  }
  ++consumed_;
  if (answer != Answer::kTaken) {
    AppendMessage(AnswerMessage{.transfer = page.header.transfer, .answer = answer}, out);
  }
  return absl::OkStatus();
}

}  // namespace sluice::transport
