// HTTP/1.1 over TCP or TLS: connections that answer one request after the other.
//
// A client that sends further requests before its answer is complete is served in order. One that
// is slow to send a request, slow to read an answer, or gone, is cut off; the work for it is
// destroyed.
//
// Threads: the loop's, but for what says otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/router/http_message.h"
#include "services/router/http_reader.h"

namespace boost::asio {
class io_context;
}

namespace sluice::router {

class TlsCertificate;

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: a free one
  HttpLimits limits;
  const TlsCertificate* tls = nullptr;  // null: plain HTTP; outlives the server
  int connections_max = 16384;
  // TLS handshakes under way. One more, and the oldest of them is cut off.
  int handshakes_max = 512;
  // Of all bodies that are coming in. Whoever sends more gets 503.
  uint64_t receiving_bytes_max = uint64_t{256} << 20;
  // Of a stream's events that the client has not taken yet. More, and it is cut off.
  size_t stream_bytes_max = 1 << 20;
  absl::Duration handshake_timeout = absl::Seconds(10);
  absl::Duration idle_timeout = absl::Seconds(75);    // between requests
  absl::Duration header_timeout = absl::Seconds(10);  // from its first byte
  absl::Duration body_timeout = absl::Minutes(2);     // from its first byte
  absl::Duration write_timeout = absl::Seconds(30);   // without a byte taken
};

class HttpServer {
 public:
  // Listens at once. Unavailable when the address cannot be had. The handler outlives the server.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(boost::asio::io_context* loop,
                                                           const HttpServerOptions& options,
                                                           HttpHandler* handler);
  // Closes every connection. The loop must not run any more, or this must be called on it.
  ~HttpServer();

  int port() const;
  int num_connections() const;
  // No new connections; those there are close after the answer that is under way.
  void BeginDrain();

 private:
  class Impl;
  explicit HttpServer(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace sluice::router
