// Cuts the bytes of one connection into messages, believing nothing: a wrong magic number, a type
// that there is not, or a page longer than pages are is an error as soon as it can be seen.
//
//   absl::Span<char> room = reader.Room();   // read(fd, room) …
//   reader.Added(bytes_read);
//   while (message = reader.Next()) …        // until nothing, or an error
//
// Holds one message at most beyond those given out: memory is bounded by what Room says.
// Threads: one at a time.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "services/transport/kv_message.h"

namespace sluice::transport {

// A view into the reader, until Room or Added.
struct Message {
  MessageType type = MessageType::kHello;
  absl::string_view body;  // MessageBytes(type)
  absl::string_view page;  // behind a kPage, when pages travel here

  // REQUIRES: of that type.
  template <typename T>
  T As() const {
    T message;
    std::memcpy(&message, body.data(), sizeof(message));
    return message;
  }
};

class MessageReader {
 public:
  // Without pages behind messages of kPage.
  MessageReader();
  // From the next message on they follow: `page_bytes_max` each at most.
  void ExpectPages(size_t page_bytes_max);

  // From now on a sender that is known: reads many messages at once.
  void ExpectMany();

  // Where bytes that come are to be put; not empty once Next gave nothing.
  absl::Span<char> Room();
  void Added(size_t bytes);

  // The next whole message; nothing: more bytes must come. After an error (InvalidArgument) the
  // reader is of no use any more.
  absl::StatusOr<std::optional<Message>> Next();

 private:
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;  // of what has come and was not given out
  bool pages_follow_ = false;
  size_t page_bytes_max_ = 0;
};

}  // namespace sluice::transport
