// Reads HTTP/1.1 responses on one connection, one after another, for the load generator: the head,
// then either a body of known length or chunks that carry server-sent events.
//
// Strict where a router could be wrong: whatever does not keep to the framing is an error.
#pragma once

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace sluice::bench {

class SseReader {
 public:
  // Gives the data of each event as it completes; the view is valid during the call. An error of
  // `on_event` ends the feeding and is returned. OutOfRange: bytes beyond the end of the response.
  absl::Status Feed(absl::string_view bytes,
                    absl::FunctionRef<absl::Status(absl::string_view)> on_event);

  bool complete() const { return state_ == State::kComplete; }
  bool keep_alive() const { return keep_alive_; }
  int status() const { return status_; }
  // Of a response that is not a stream of events.
  const std::string& body() const { return body_; }

  void Reset();  // for the next response

 private:
  enum class State { kHead, kLength, kChunkSize, kChunk, kChunkEnd, kTrailer, kComplete };

  absl::Status ReadHead();
  absl::Status ReadLine(absl::string_view* bytes, std::string* line, bool* whole);
  absl::Status TakeEvents(absl::FunctionRef<absl::Status(absl::string_view)> on_event);

  State state_ = State::kHead;
  int status_ = 0;
  bool keep_alive_ = true;
  size_t left_ = 0;   // of a body, or of a chunk
  std::string line_;  // an unfinished one: the head, a chunk's size
  std::string body_;  // an unfinished event, or the body
};

}  // namespace sluice::bench
