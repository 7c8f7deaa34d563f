#include "services/transport/socket_link.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sluice::transport {
namespace {

constexpr size_t kWrittenMax = 64 << 10;  // bytes kept that have gone out

absl::Status Lost() {
  return absl::UnavailableError(
      absl::StrCat("the connection is lost: ", absl::ErrnoToStatus(errno, "").message()));
}

bool NotNow() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

// Room for the descriptors that a message carries.
union ControlBuffer {
  cmsghdr head;
  char bytes[CMSG_SPACE(SocketLink::kDescriptorsMax * sizeof(int))];
};

iovec Part(const void* data, size_t size) { return {const_cast<void*>(data), size}; }

}  // namespace

void SocketLink::Queue(absl::string_view bytes) {
  if (written_ >= kWrittenMax) {
    before_page_.erase(0, written_);
    written_ = 0;
  }
  (page_queued() ? behind_page_ : before_page_).append(bytes.data(), bytes.size());
}

absl::Status SocketLink::Flush() {
  while (output_queued() && !blocked_) {
    iovec parts[] = {Part(before_page_.data() + written_, before_page_.size() - written_),
                     Part(page_.data(), page_.size()),
                     Part(behind_page_.data(), behind_page_.size())};
    msghdr message = {};
    message.msg_iov = parts;
    message.msg_iovlen = std::size(parts);
    ControlBuffer control = {};
    if (const size_t size = descriptors_.size() * sizeof(int); size > 0) {
      message.msg_control = &control;
      message.msg_controllen = CMSG_SPACE(size);
      cmsghdr* const head = CMSG_FIRSTHDR(&message);
      head->cmsg_level = SOL_SOCKET;
      head->cmsg_type = SCM_RIGHTS;
      head->cmsg_len = CMSG_LEN(size);
      std::memcpy(CMSG_DATA(head), descriptors_.data(), size);
    }
    const ssize_t written = sendmsg(socket(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && !NotNow()) return Lost();
    if (written < 0) {
      blocked_ = true;
    } else {
      descriptors_.clear();
      Written(static_cast<size_t>(written));
    }
  }
  return absl::OkStatus();
}

void SocketLink::Written(size_t bytes) {
  const size_t before = std::min(bytes, before_page_.size() - written_);
  written_ += before;
  bytes -= before;
  const size_t of_page = std::min(bytes, page_.size());
  page_.remove_prefix(of_page);
  bytes -= of_page;
  if (written_ < before_page_.size() || page_queued()) return;
  before_page_.clear();
  before_page_.swap(behind_page_);
  written_ = bytes;
}

absl::StatusOr<size_t> SocketLink::Read(absl::Span<char> room,
                                        std::vector<FileDescriptor>* passed) {
  iovec part = Part(room.data(), room.size());
  ControlBuffer control = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = &control;
  // The system closes descriptors beyond these.
  message.msg_controllen = CMSG_LEN(kDescriptorsMax * sizeof(int));
  const ssize_t got = recvmsg(socket(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0 && NotNow()) return 0;
  if (got < 0) return Lost();
  const cmsghdr* const head = CMSG_FIRSTHDR(&message);
  if (head != nullptr && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
    const size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int descriptor = -1;
      std::memcpy(&descriptor, CMSG_DATA(head) + i * sizeof(int), sizeof(int));
      passed->emplace_back(descriptor);
    }
  }
  if (got == 0) return absl::UnavailableError("the other side has closed the connection");
  return static_cast<size_t>(got);
}

}  // namespace sluice::transport
