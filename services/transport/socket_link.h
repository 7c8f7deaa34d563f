// One connection: a socket that does not block, with what is to be written to it. At most one page
// is queued, by reference; other messages are copied.
//
// Threads: one at a time.
// Errors: Unavailable, with the system's reason; the connection is lost.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/ops/device_buffer.h"
#include "services/transport/file_descriptor.h"

namespace sluice::transport {

class SocketLink {
 public:
  static constexpr size_t kDescriptorsMax = MemoryHandle::kChunksMax;

  explicit SocketLink(FileDescriptor socket) : socket_(std::move(socket)) {}

  int socket() const { return socket_.get(); }

  // Bytes go out in the order in which they are queued.
  void Queue(absl::string_view bytes);
  // Must stay as they are until page_queued() is false. REQUIRES: !page_queued().
  void QueuePage(absl::Span<const std::byte> bytes) { page_ = bytes; }
  // Passes descriptors, which must stay open until then, with the next byte that goes out. Over
  // Unix sockets; at most kDescriptorsMax.
  void QueueDescriptors(absl::Span<const int> descriptors) {
    descriptors_.assign(descriptors.begin(), descriptors.end());
  }

  bool page_queued() const { return !page_.empty(); }
  bool output_queued() const { return page_queued() || queued_bytes() > 0; }
  // Without the page.
  size_t queued_bytes() const { return before_page_.size() - written_ + behind_page_.size(); }

  // Writes what the system takes now; nothing while it is known to take nothing (see MayWrite).
  absl::Status Flush();
  // The system says that it takes bytes again.
  void MayWrite() { blocked_ = false; }

  // Reads what is there, up to the size of `room`; 0: nothing just now. Descriptors that came with
  // it are appended to `passed`.
  absl::StatusOr<size_t> Read(absl::Span<char> room, std::vector<FileDescriptor>* passed);

 private:
  void Written(size_t bytes);

  FileDescriptor socket_;
  std::string before_page_;
  size_t written_ = 0;  // of before_page_
  absl::Span<const std::byte> page_;
  std::string behind_page_;
  std::vector<int> descriptors_;
  bool blocked_ = false;
};

}  // namespace sluice::transport
