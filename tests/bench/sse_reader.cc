#include "tests/bench/sse_reader.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kernels/base/status.h"

namespace sluice::bench {
namespace {

constexpr size_t kHeadBytesMax = 16 << 10;

}  // namespace

void SseReader::Reset() {
  state_ = State::kHead;
  status_ = 0;
  left_ = 0;
  line_.clear();
  body_.clear();
}

absl::Status SseReader::Feed(absl::string_view bytes,
                             absl::FunctionRef<absl::Status(absl::string_view)> on_event) {
  bool whole = false;
  while (!bytes.empty()) {
    switch (state_) {
      case State::kHead:
        SLUICE_RETURN_IF_ERROR(ReadLine(&bytes, &line_, &whole));
        if (whole && absl::EndsWith(line_, "\r\n\r\n")) SLUICE_RETURN_IF_ERROR(ReadHead());
        break;
      case State::kLength:
      case State::kChunk: {
        const size_t count = std::min(left_, bytes.size());
        body_.append(bytes.data(), count);
        bytes.remove_prefix(count);
        left_ -= count;
        if (state_ == State::kChunk) SLUICE_RETURN_IF_ERROR(TakeEvents(on_event));
        if (left_ > 0) break;
        state_ = state_ == State::kChunk ? State::kChunkEnd : State::kComplete;
        break;
      }
      case State::kChunkSize: {
        SLUICE_RETURN_IF_ERROR(ReadLine(&bytes, &line_, &whole));
        if (!whole) break;
        uint64_t size = 0;
        if (!absl::SimpleHexAtoi(absl::StripSuffix(line_, "\r\n"), &size)) {
          return absl::InvalidArgumentError(absl::StrCat("a chunk's size is '", line_, "'"));
        }
        line_.clear();
        left_ = size;
        state_ = size > 0 ? State::kChunk : State::kTrailer;
        break;
      }
      case State::kChunkEnd:
      case State::kTrailer:
        SLUICE_RETURN_IF_ERROR(ReadLine(&bytes, &line_, &whole));
        if (!whole) break;
        if (line_ != "\r\n") {
          return absl::InvalidArgumentError(absl::StrCat("after a chunk stands '", line_, "'"));
        }
        line_.clear();
        if (state_ == State::kTrailer && !body_.empty()) {
          return absl::InvalidArgumentError("the stream ends within an event");
        }
        state_ = state_ == State::kTrailer ? State::kComplete : State::kChunkSize;
        break;
      case State::kComplete:
        return absl::OutOfRangeError("bytes after the end of the response");
    }
  }
  return absl::OkStatus();
}

// Appends what belongs to the line; `whole`: its end was there.
absl::Status SseReader::ReadLine(absl::string_view* bytes, std::string* line, bool* whole) {
  const size_t end = bytes->find('\n');
  *whole = end != absl::string_view::npos;
  const size_t count = *whole ? end + 1 : bytes->size();
  line->append(bytes->data(), count);
  bytes->remove_prefix(count);
  if (line->size() <= kHeadBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError("a head without end");
}

absl::Status SseReader::ReadHead() {
  std::string head;
  head.swap(line_);
  if (!absl::StartsWith(head, "HTTP/1.1 ") ||
      !absl::SimpleAtoi(head.substr(sizeof("HTTP/1.1 ") - 1, 3), &status_)) {
    return absl::InvalidArgumentError(absl::StrCat("a response begins '", head.substr(0, 40), "'"));
  }
  bool chunked = false;
  keep_alive_ = true;
  for (absl::string_view field : absl::StrSplit(head, "\r\n")) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(field, absl::MaxSplits(':', 1));
    const absl::string_view value = absl::StripAsciiWhitespace(parts.second);
    if (absl::EqualsIgnoreCase(parts.first, "transfer-encoding")) chunked = value == "chunked";
    if (absl::EqualsIgnoreCase(parts.first, "connection")) keep_alive_ = value != "close";
    if (absl::EqualsIgnoreCase(parts.first, "content-length") && !absl::SimpleAtoi(value, &left_)) {
      return absl::InvalidArgumentError(absl::StrCat("Content-Length is '", value, "'"));
    }
  }
  if (chunked) {
    state_ = State::kChunkSize;
  } else {
    state_ = left_ > 0 ? State::kLength : State::kComplete;
  }
  return absl::OkStatus();
}

absl::Status SseReader::TakeEvents(absl::FunctionRef<absl::Status(absl::string_view)> on_event) {
  size_t at = 0;
  while (true) {
    const size_t end = body_.find("\n\n", at);
    if (end == std::string::npos) break;
    absl::string_view event(body_.data() + at, end - at);
    if (!absl::ConsumePrefix(&event, "data: ")) {
      return absl::InvalidArgumentError(absl::StrCat("an event is '", event.substr(0, 40), "'"));
    }
    SLUICE_RETURN_IF_ERROR(on_event(event));
    at = end + 2;
  }
  body_.erase(0, at);
  return absl::OkStatus();
}

}  // namespace sluice::bench
