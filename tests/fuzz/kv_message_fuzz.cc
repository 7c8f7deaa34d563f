// Any bytes on a connection of the KV transport, in one piece and byte by byte. The first byte
// says at which end: a receiver over TCP, a receiver with shared memory, a sender; a receiver whose
// memory is a device's, to which the sender passes its pool, a ring, or nothing.
//   Receiver: the same answers, never more bytes than came, and nothing written outside the lease.
//   A device's: the same bytes in the lease unless it is refused, and nothing in flight once copies
//   have ended.
//   Sender: no transfer ends well that the receiver did not complete.

#include <fcntl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "services/transport/device_pages.h"
#include "services/transport/lease_table.h"
#include "services/transport/memory_mover.h"
#include "services/transport/receive_session.h"
#include "services/transport/send_session.h"
#include "services/transport/shared_ring.h"
#include "services/transport/transfer_table.h"

namespace sluice::transport {
namespace {

// Small and round, so that a fuzzer finds them.
constexpr KvLayout kLayout{.layers = 2, .pages = 4, .page_rows = 2, .row_bytes = 8};
constexpr uint64_t kIncarnation = 1;
constexpr size_t kLeased = 2;  // the page of lease 1

void Check(bool holds) {
  if (!holds) std::abort();
}

struct Pool {
  Pool() : bytes(static_cast<size_t>(kLayout.layers * kLayout.pages * kLayout.page_bytes())) {
    memory.layout = kLayout;
    for (int64_t layer = 0; layer < kLayout.layers; ++layer) {
      memory.layers.push_back(bytes.data() + layer * kLayout.pages * kLayout.page_bytes());
    }
  }
  std::vector<std::byte> bytes;
  KvMemory memory;
};

v1::Lease TheLease() {
  v1::Lease lease;
  lease.set_lease(1);
  lease.set_incarnation(kIncarnation);
  lease.set_endpoint("receiver");
  lease.add_pages(kLeased);
  return lease;
}

// Up to `piece` bytes at a time; true: all were taken.
template <typename Session, typename Take>
bool Feed(Session* session, absl::string_view bytes, size_t piece, const Take& take) {
  while (!bytes.empty()) {
    const absl::Span<char> room = session->Room();
    Check(!room.empty());
    const size_t size = std::min({piece, room.size(), bytes.size()});
    std::memcpy(room.data(), bytes.data(), size);
    bytes.remove_prefix(size);
    if (!take(size)) return false;
  }
  return true;
}

struct Outcome {
  bool taken = false;
  std::string said;  // without Consumed, which depends on the pieces
  std::vector<std::byte> memory;
};

std::string WithoutConsumed(absl::string_view said) {
  std::string rest;
  while (!said.empty()) {
    MessageHead head;
    Check(said.size() >= sizeof(head));
    std::memcpy(&head, said.data(), sizeof(head));
    const size_t size = sizeof(head) + MessageBytes(head.type);
    Check(size > sizeof(head) && size <= said.size());
    if (head.type != MessageType::kConsumed) rest.append(said.data(), size);
    said.remove_prefix(size);
  }
  return rest;
}

// A device that has copied when Queue returns.
class PromptMover final : public PageMover {
 public:
  void SetWake(std::function<void()>) override {}
  absl::StatusOr<DeviceBuffer> AllocateStaging(size_t bytes) override {
    return AllocateMappable(bytes);
  }
  absl::StatusOr<DeviceBuffer> Map(const MemoryHandle& handle) override {
    return MapMappable(handle);
  }
  bool HasRoom() const override { return true; }
  absl::StatusOr<std::unique_ptr<PageBatch>> Queue(absl::Span<const PageCopy> copies,
                                                   StreamPoint) override {
    for (const PageCopy& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
    return std::make_unique<Batch>();
  }

 private:
  struct Batch final : PageBatch {
    absl::StatusOr<bool> Done() override { return true; }
    PageSums sums(size_t) const override { return {}; }
  };
};

enum class Receiver { kTcp, kMemory, kDevicePool, kDeviceRing, kDeviceTcp };

// What a sender passes: a ring, or its pool.
std::vector<FileDescriptor> Passed(Receiver receiver) {
  static const SharedRing ring = *SharedRing::Create(kLayout);
  static const DeviceBuffer pool = [] {
    DeviceBuffer made = AllocateMappable(
        static_cast<size_t>(kLayout.layers * kLayout.pages * kLayout.page_bytes()));
    std::memset(made.memory.get(), 'p', made.bytes);
    return made;
  }();
  std::vector<FileDescriptor> passed;
  if (receiver == Receiver::kMemory || receiver == Receiver::kDeviceRing) {
    passed.emplace_back(fcntl(ring.descriptor(), F_DUPFD_CLOEXEC, 0));
  }
  if (receiver == Receiver::kDevicePool) {
    for (int chunk : pool.handle->descriptors) {
      passed.emplace_back(fcntl(chunk, F_DUPFD_CLOEXEC, 0));
    }
  }
  return passed;
}

Outcome Receive(absl::string_view bytes, size_t piece, Receiver receiver) {
  static PromptMover mover;
  static StagingPool staging(&mover, kLayout);
  const bool device = receiver > Receiver::kMemory;
  Pool pool;
  LeaseTable leases(pool.memory, kIncarnation, [] {});
  Check(leases.Open(TheLease(), kLayout.page_rows, [](const LeaseResult&) {}).ok());
  const SessionContext context{.layout = kLayout,
                               .incarnation = kIncarnation,
                               .checksums = false,
                               .mover = device ? &mover : nullptr,
                               .staging = device ? &staging : nullptr};
  std::vector<FileDescriptor> passed = Passed(receiver);
  ReceiveSession session(&context, &leases, /*shares_memory=*/!passed.empty());
  std::string said;
  size_t came = 0;
  Outcome outcome;
  outcome.taken = Feed(&session, bytes, piece, [&](size_t size) {
    came += size;
    bool ok = session.Arrived(size, std::exchange(passed, {}), absl::UnixEpoch(), &said).ok();
    while (ok && session.busy()) {
      session.Collect(absl::UnixEpoch(), &said);
      ok = session.Read(absl::UnixEpoch(), &said).ok();
    }
    Check(said.size() <= came);
    return ok;
  });
  session.End(absl::UnixEpoch());
  for (int i = 0; session.busy(); ++i) {
    Check(i < 10);
    session.Collect(absl::UnixEpoch(), &said);
  }
  Check(leases.Close(1, absl::ZeroDuration()).ok());
  // What is said of a copy comes when it has ended: sooner in pieces.
  if (!device) outcome.said = WithoutConsumed(said);
  const auto page_bytes = static_cast<size_t>(kLayout.page_bytes());
  for (size_t at = 0; at < pool.bytes.size(); ++at) {
    const size_t page = at / page_bytes % static_cast<size_t>(kLayout.pages);
    Check(page == kLeased || pool.bytes[at] == std::byte{0});
  }
  outcome.memory = std::move(pool.bytes);
  return outcome;
}

bool Send(absl::string_view bytes, size_t piece) {
  Pool pool;
  TransferTable transfers(pool.memory, {}, [] {});
  std::optional<absl::Status> sent;
  Check(transfers
            .Begin(
                TheLease(), absl::Minutes(1),
                [&](TransferId, const absl::Status& status) {
                  Check(!sent.has_value());
                  sent = status;
                },
                absl::UnixEpoch())
            .ok());
  const SessionContext context{.layout = kLayout, .incarnation = 2, .checksums = false};
  SendSession session(&context, &transfers, transfers.NewPeers().front(), std::nullopt);
  const bool taken =
      Feed(&session, bytes, piece, [&](size_t size) { return session.Arrived(size).ok(); });
  transfers.RunEnded();
  if (sent.has_value() && sent->ok()) {
    // The only answer that says so.
    std::string complete;
    AppendMessage(AnswerMessage{.transfer = 1, .answer = Answer::kComplete}, &complete);
    Check(bytes.find(complete.substr(sizeof(MessageHead), 12)) != absl::string_view::npos);
  }
  session.Fail(absl::UnavailableError("lost"));
  transfers.RunEnded();
  Check(sent.has_value() && transfers.stats().transfers == 0);
  return taken;
}

}  // namespace
}  // namespace sluice::transport

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice::transport;
  if (size == 0) return 0;
  const absl::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const Receiver receivers[] = {Receiver::kTcp, Receiver::kMemory, Receiver::kDevicePool,
                                Receiver::kDeviceRing, Receiver::kDeviceTcp};
  const size_t end = data[0] % 6;
  if (end == 2) {
    Check(Send(bytes, size) == Send(bytes, 1));
    return 0;
  }
  const Receiver receiver = receivers[end < 2 ? end : end - 1];
  const Outcome whole = Receive(bytes, size, receiver);
  const Outcome pieces = Receive(bytes, 1, receiver);
  Check(whole.taken == pieces.taken);
  Check(whole.said == pieces.said);
  // Copies that had not begun when a bad message came are not made.
  if (whole.taken || end < 2) Check(whole.memory == pieces.memory);
  return 0;
}
