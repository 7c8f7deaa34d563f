// The receiver's end of one connection, without a socket: what came from a sender, or from whoever
// else has connected, goes in; what is to be written comes out.
//
// Threads: the transport's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/transport/device_pages.h"
#include "services/transport/file_descriptor.h"
#include "services/transport/kv_transfer.h"
#include "services/transport/lease_table.h"
#include "services/transport/message_reader.h"
#include "services/transport/shared_ring.h"

namespace sluice::transport {

// What both ends of all connections of a process know.
struct SessionContext {
  KvLayout layout;
  uint64_t incarnation = 0;
  bool checksums = true;
  PageMover* mover = nullptr;      // null: the processor reaches the KV memory itself
  StagingPool* staging = nullptr;  // null with the mover
};

class ReceiveSession {
 public:
  // `shares_memory`: pages come in memory that the hello brings, else behind their messages.
  // `context` and `leases` must outlive the session.
  ReceiveSession(const SessionContext* context, LeaseTable* leases, bool shares_memory)
      : context_(*context), leases_(*leases), shares_memory_(shares_memory) {
    if (context->mover != nullptr) device_.emplace(context->mover, leases, context->checksums);
  }

  // Where to read to.
  absl::Span<char> Room() { return reader_.Room(); }
  // So many bytes have come, and perhaps descriptors with them. Answers are appended to `out`, in
  // all never more bytes than came. InvalidArgument: this is no sender of ours, or one
  // that is out of order; the connection is to be closed. REQUIRES may_read.
  absl::Status Arrived(size_t bytes, std::vector<FileDescriptor> passed, absl::Time now,
                       std::string* out);
  // False: copies must end first, or the connection has ended.
  bool may_read() const { return !ended_ && (!device_.has_value() || device_->HasRoom()); }

  // Whether copies are in flight: then Collect must be called every now and then, also when the
  // connection has ended. Gives the number of pages that are done.
  bool busy() const { return device_.has_value() && device_->busy(); }
  size_t Collect(absl::Time now, std::string* out);
  // Acts on what has come and had to wait. Errors as Arrived.
  absl::Status Read(absl::Time now, std::string* out);
  // The connection has ended, or is to be: what has come and was not acted on is forgotten. Copies
  // in flight go on until Collect finds them done.
  void End(absl::Time now);

  // Whether it said a hello that fits.
  bool welcome() const { return welcome_; }

 private:
  absl::Status On(const Message& message, absl::Time now, std::string* out);
  absl::Status OnHello(const Hello& hello, std::string* out);
  absl::StatusOr<Verdict> Take(const Hello& hello);
  Verdict MapPool(const Hello& hello);
  // Into the leased page; false: the checksum is another than the header's.
  bool Copy(absl::Span<const std::byte> bytes, const LeaseTable::Arrival& arrival,
            const PageHeader& header) const;
  absl::Status OnPage(const PageMessage& page, absl::string_view bytes, absl::Time now,
                      std::string* out);

  const SessionContext& context_;
  LeaseTable& leases_;
  const bool shares_memory_;
  MessageReader reader_;
  std::vector<FileDescriptor> passed_;  // until the hello
  std::optional<SharedRing> ring_;
  DeviceBuffer pool_;  // of the sender
  uint64_t pool_pages_ = 0;
  std::optional<DevicePagesIn> device_;  // behind what it reads from
  bool ended_ = false;
  bool greeted_ = false;
  bool pool_refused_ = false;
  bool welcome_ = false;
  uint64_t consumed_ = 0;  // pages
  uint64_t consumed_told_ = 0;
};

}  // namespace sluice::transport
