#include "services/transport/receive_session.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/status.h"
#include "services/base/log.h"
#include "services/transport/page_checksum.h"

namespace sluice::transport {
namespace {

// Who connects again and again fills no log.
class WarnNowAndThen {
 public:
  void operator()(absl::string_view message, const absl::Status& reason) {
    const absl::Time now = absl::Now();
    if (now - last_ < absl::Seconds(10)) return;
    last_ = now;
    LogWarn(message, {{"reason", reason}});
  }

 private:
  absl::Time last_ = absl::InfinitePast();
};

}  // namespace

absl::Status ReceiveSession::Arrived(size_t bytes, std::vector<FileDescriptor> passed,
                                     absl::Time now, std::string* out) {
  if (!passed.empty()) {
    if (!shares_memory_ || greeted_ || !passed_.empty()) {
      return absl::InvalidArgumentError("a descriptor that is not a hello's");
    }
    passed_ = std::move(passed);
  }
  reader_.Added(bytes);
  return Read(now, out);
}

size_t ReceiveSession::Collect(absl::Time now, std::string* out) {
  const size_t count = device_->Collect(now, [&](const PageHeader& header, Answer answer) {
    if (answer == Answer::kTaken) return;
    AppendMessage(AnswerMessage{.transfer = header.transfer, .answer = answer}, out);
  });
  if (pool_.memory != nullptr) consumed_ += count;
  return count;
}

void ReceiveSession::End(absl::Time now) {
  ended_ = true;
  if (device_.has_value()) device_->Abandon(now);
}

absl::Status ReceiveSession::Read(absl::Time now, std::string* out) {
  while (may_read()) {
    SLUICE_ASSIGN_OR_RETURN(const std::optional<Message> message, reader_.Next());
    if (!message.has_value()) break;
    SLUICE_RETURN_IF_ERROR(On(*message, now, out));
  }
  if (device_.has_value()) device_->Flush();
  if (shares_memory_ && consumed_ != consumed_told_) {
    consumed_told_ = consumed_;
    AppendMessage(Consumed{.pages = consumed_}, out);
  }
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
  SLUICE_ASSIGN_OR_RETURN(const Verdict verdict, Take(hello));
  passed_.clear();
  greeted_ = verdict != Verdict::kCannotMap;
  welcome_ = verdict == Verdict::kWelcome;
  AppendMessage(Welcome{.verdict = verdict}, out);
  return absl::OkStatus();
}

absl::StatusOr<Verdict> ReceiveSession::Take(const Hello& hello) {
  const KvLayout& layout = context_.layout;
  if (hello.incarnation != context_.incarnation) return Verdict::kOtherIncarnation;
  if (hello.layers != layout.layers || hello.page_rows != layout.page_rows ||
      hello.row_bytes != layout.row_bytes) {
    return Verdict::kOtherLayout;
  }
  if (shares_memory_ && passed_.empty()) {
    return absl::InvalidArgumentError("a hello without memory");
  }
  if (shares_memory_ && hello.pool_pages > 0) {
    if (pool_refused_) return absl::InvalidArgumentError("a second pool");
    const Verdict verdict = MapPool(hello);
    pool_refused_ = verdict != Verdict::kWelcome;
    return verdict;
  }
  if (shares_memory_) {
    if (passed_.size() != 1) return absl::InvalidArgumentError("a ring in several pieces");
    SLUICE_ASSIGN_OR_RETURN(auto ring,
                            SharedRing::Open(std::move(passed_.front()), layout, hello.ring_slots));
    ring_.emplace(std::move(ring));
  } else {
    reader_.ExpectPages(static_cast<size_t>(layout.page_bytes()));
  }
  if (device_.has_value()) {
    absl::StatusOr<Staging> staging = context_.staging->Take();
    if (!staging.ok()) {
      thread_local WarnNowAndThen warn;
      warn("KV from a sender cannot be taken", staging.status());
      return Verdict::kNoStaging;
    }
    device_->StageIn(*std::move(staging));
  }
  return Verdict::kWelcome;
}

Verdict ReceiveSession::MapPool(const Hello& hello) {
  const KvLayout& layout = context_.layout;
  const auto page_bytes = static_cast<uint64_t>(layout.page_bytes());
  const auto layers = static_cast<uint64_t>(layout.layers);
  if (context_.mover == nullptr || hello.pool_pages > hello.pool_bytes / page_bytes / layers) {
    return Verdict::kCannotMap;
  }
  MemoryHandle handle{.chunk_bytes = hello.pool_chunk_bytes, .bytes = hello.pool_bytes};
  for (const FileDescriptor& chunk : passed_) handle.descriptors.push_back(chunk.get());
  absl::StatusOr<DeviceBuffer> pool = context_.mover->Map(handle);
  if (!pool.ok()) {
    thread_local WarnNowAndThen warn;
    warn("KV comes through the host: a sender's memory cannot be mapped", pool.status());
    return Verdict::kCannotMap;
  }
  pool_ = *std::move(pool);
  pool_pages_ = hello.pool_pages;
  reader_.ExpectMany();
  return Verdict::kWelcome;
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
  if (ring_.has_value() && page.bytes > static_cast<uint64_t>(context_.layout.page_bytes())) {
    return absl::InvalidArgumentError(absl::StrCat("a page of ", page.bytes, " bytes; they have ",
                                                   context_.layout.page_bytes(), " at most"));
  }
  if (ring_.has_value()) from = ring_->Slot(consumed_);
  if (pool_.memory != nullptr && page.page >= pool_pages_) {
    return absl::InvalidArgumentError(
        absl::StrCat("page ", page.page, " of a pool of ", pool_pages_, " pages"));
  }
  const LeaseTable::Arrival arrival =
      leases_.Start(page.header, static_cast<size_t>(page.bytes), now);
  Answer answer = arrival.answer;
  if (answer == Answer::kTaken) {
    if (pool_.memory != nullptr) {  // the layer is known to be one
      from = pool_.As<std::byte>() + (page.header.layer * pool_pages_ + page.page) *
                                         static_cast<uint64_t>(context_.layout.page_bytes());
    }
    if (device_.has_value()) {
      device_->Add(page.header, arrival, from);
    } else {
      // What is verified is the copy: the sender could still change the ring.
      const bool intact = Copy({from, arrival.target.size()}, arrival, page.header);
      using Outcome = LeaseTable::Copy;
      answer = leases_.Finish(page.header, intact ? Outcome::kIntact : Outcome::kDamaged, now);
    }
  } else if (device_.has_value()) {
    device_->Skip();
  }
  // Out of a pool pages are read later.
  if (pool_.memory == nullptr) ++consumed_;
  if (answer != Answer::kTaken) {
    AppendMessage(AnswerMessage{.transfer = page.header.transfer, .answer = answer}, out);
  }
  return absl::OkStatus();
}

}  // namespace sluice::transport
