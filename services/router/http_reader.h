// Bytes from a client to HTTP/1.x requests, by Boost.Beast's parser, within limits.
//
// Threads: one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/strings/string_view.h"
#include "services/router/http_message.h"

namespace sluice::router {

struct HttpLimits {
  uint32_t header_bytes_max = 16 << 10;  // also of a chunk's header, and of the trailers
  uint64_t body_bytes_max = 16 << 20;
};

class HttpReader {
 public:
  explicit HttpReader(const HttpLimits& limits);
  ~HttpReader();

  enum class State {
    kIdle,   // nothing of the next request has come
    kHead,   // in its header
    kBody,   // in its body
    kReady,  // complete: Take() it
    kError,  // http_status() and error() say what was wrong; nothing more is read
  };

  // What comes after a complete request is kept for the next one; it is no more than `bytes`.
  State Feed(absl::string_view bytes);
  State state() const;

  // In state kBody: the client waits for "100 Continue" before it sends the body. True once.
  bool TakeExpectsContinue();

  // Of the body of the request that is coming in.
  size_t num_body_bytes() const;
  // Forgets all that has come.
  void Drop();

  // In state kBody: the request without its body.
  HttpRequest Head() const;

  // The request; the state is then that of the next one, of which bytes may have come already.
  HttpRequest Take();

  // In state kError: 400, 413 or 431.
  int http_status() const;
  const std::string& error() const;
  // Bytes that have come and belong to no request yet. Before a request is complete, no more than
  // header_bytes_max.
  size_t num_kept_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::router
