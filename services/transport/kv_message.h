// What travels on a connection of the socket transport: messages of a fixed size for each type,
// sent as they lie in memory (little-endian, no padding), a MessageHead before each.
//
//   sender                                receiver
//   Hello                            ->                 over a Unix socket with memory: of a ring,
//                                                       or of the sender's whole pool
//                                    <-   Welcome       refuses, asks for pages, or for a hello
//                                                       with a ring
//   PageMessage                      ->                 its bytes behind it (TCP), in the ring, or
//                                                       where they are in the pool
//                                    <-   Consumed      slots of the ring that are free again, or
//                                                       pages of the pool that were read
//                                    <-   AnswerMessage of all pages but those that changed nothing
//   Ping                             ->
//                                    <-   Pong
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "absl/strings/string_view.h"
#include "services/transport/page_message.h"

namespace sluice::transport {

enum class MessageType : uint32_t {
  kHello = 1,
  kWelcome = 2,
  kPage = 3,
  kConsumed = 4,
  kAnswer = 5,
  kPing = 6,
  kPong = 7,
};

// Before every message. The magic number is also the version of all that follows.
struct MessageHead {
  uint32_t magic = 0x33564B53;  // "SKV3"
  MessageType type = MessageType::kHello;
};

struct Hello {
  static constexpr MessageType kType = MessageType::kHello;
  uint64_t incarnation = 0;  // of the receiver, as the sender knows it
  int64_t layers = 0;
  int64_t page_rows = 0;
  int64_t row_bytes = 0;
  uint64_t ring_slots = 0;  // of the ring that comes with this message, or 0
  // Of the pool that comes with this message, or 0: layer l, page p is page l * pool_pages + p
  // there; its chunks are of pool_chunk_bytes but perhaps the last.
  uint64_t pool_pages = 0;
  uint64_t pool_chunk_bytes = 0;
  uint64_t pool_bytes = 0;
};

enum class Verdict : uint64_t {
  kWelcome = 0,
  kOtherIncarnation = 1,
  kOtherLayout = 2,
  kCannotMap = 3,  // the pool; a hello with a ring may follow
  kNoStaging = 4,  // memory for pages that come through the host
};
struct Welcome {
  static constexpr MessageType kType = MessageType::kWelcome;
  Verdict verdict = Verdict::kWelcome;
};

// The n-th page of a connection that has a ring lies in slot n modulo the number of slots.
struct PageMessage {
  static constexpr MessageType kType = MessageType::kPage;
  PageHeader header;
  uint64_t bytes = 0;
  uint64_t page = 0;  // of the sender's memory
};

struct Consumed {
  static constexpr MessageType kType = MessageType::kConsumed;
  uint64_t pages = 0;  // since the welcome, in all
};

struct AnswerMessage {
  static constexpr MessageType kType = MessageType::kAnswer;
  uint64_t transfer = 0;
  Answer answer = Answer::kTaken;
  uint32_t reserved = 0;
};

struct Ping {
  static constexpr MessageType kType = MessageType::kPing;
  uint64_t number = 0;
};

struct Pong {
  static constexpr MessageType kType = MessageType::kPong;
  uint64_t number = 0;  // of the ping
};

// Message and head, without a page's bytes.
inline constexpr size_t kMessageBytesMax = sizeof(MessageHead) + sizeof(Hello);
static_assert(kMessageBytesMax == 72 && sizeof(PageMessage) <= sizeof(Hello));

// Of the message without its head; 0 for a type that there is not.
constexpr size_t MessageBytes(MessageType type) {
  switch (type) {
    case MessageType::kHello:
      return sizeof(Hello);
    case MessageType::kWelcome:
      return sizeof(Welcome);
    case MessageType::kPage:
      return sizeof(PageMessage);
    case MessageType::kConsumed:
      return sizeof(Consumed);
    case MessageType::kAnswer:
      return sizeof(AnswerMessage);
    case MessageType::kPing:
      return sizeof(Ping);
    case MessageType::kPong:
      return sizeof(Pong);
  }
  return 0;
}

// Head and message, behind what `out` holds.
template <typename T>
void AppendMessage(const T& message, std::string* out) {
  static_assert(std::has_unique_object_representations_v<T>, "no padding");
  const MessageHead head{.type = T::kType};
  out->append(reinterpret_cast<const char*>(&head), sizeof(head));
  out->append(reinterpret_cast<const char*>(&message), sizeof(message));
}

}  // namespace sluice::transport
