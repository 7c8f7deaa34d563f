#include "services/transport/message_reader.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace sluice::transport {
namespace {

constexpr size_t kBytes = 16 * kMessageBytesMax;  // without pages
constexpr size_t kManyBytes = 1024 * kMessageBytesMax;

}  // namespace

MessageReader::MessageReader() : buffer_(kBytes) {}

void MessageReader::ExpectPages(size_t page_bytes_max) {
  pages_follow_ = true;
  page_bytes_max_ = page_bytes_max;
  // Room for one message: reading then stops where a page does, and nothing is moved to the front.
  buffer_.resize(std::max(kBytes, kMessageBytesMax + page_bytes_max));
}

void MessageReader::ExpectMany() { buffer_.resize(kManyBytes); }

absl::Span<char> MessageReader::Room() {
  if (begin_ > 0) {
    std::copy(buffer_.begin() + static_cast<ptrdiff_t>(begin_),
              buffer_.begin() + static_cast<ptrdiff_t>(end_), buffer_.begin());
    end_ -= begin_;
    begin_ = 0;
  }
  return absl::MakeSpan(buffer_).subspan(end_);
}

void MessageReader::Added(size_t bytes) { end_ += bytes; }

absl::StatusOr<std::optional<Message>> MessageReader::Next() {
  const absl::string_view bytes(buffer_.data() + begin_, end_ - begin_);
  MessageHead head;
  if (bytes.size() < sizeof(head)) return std::nullopt;
  std::memcpy(&head, bytes.data(), sizeof(head));
  if (head.magic != MessageHead{}.magic) {
    return absl::InvalidArgumentError(
        absl::StrCat("a message begins with ", absl::Hex(head.magic, absl::kZeroPad8), ", wanted ",
                     absl::Hex(MessageHead{}.magic, absl::kZeroPad8)));
  }
  const size_t size = MessageBytes(head.type);
  if (size == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("there are no messages of type ", static_cast<uint32_t>(head.type)));
  }
  if (bytes.size() < sizeof(head) + size) return std::nullopt;
  Message message{.type = head.type, .body = bytes.substr(sizeof(head), size)};
  size_t page_bytes = 0;
  if (head.type == MessageType::kPage && pages_follow_) {
    const uint64_t wanted = message.As<PageMessage>().bytes;
    if (wanted > page_bytes_max_) {
      return absl::InvalidArgumentError(
          absl::StrCat("a page of ", wanted, " bytes; they have ", page_bytes_max_, " at most"));
    }
    page_bytes = static_cast<size_t>(wanted);
    if (bytes.size() < sizeof(head) + size + page_bytes) return std::nullopt;
    message.page = bytes.substr(sizeof(head) + size, page_bytes);
  }
  begin_ += sizeof(head) + size + page_bytes;
  return message;
}

}  // namespace sluice::transport
