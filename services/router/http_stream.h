// The bytes of one client's connection, plain or inside TLS.
//
// As with Asio's own streams: at most one read and one write at a time, whose ends are told on the
// loop; the stream must live until then. Threads: the loop's.
#pragma once

#include <openssl/err.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <optional>
#include <utility>

namespace sluice::router {

class HttpStream {
 public:
  using Error = boost::system::error_code;

  // `tls` is taken over; null: plain.
  HttpStream(boost::asio::ip::tcp::socket socket, ssl_st* tls) : socket_(std::move(socket)) {
    Error ignored;
    socket_.non_blocking(true, ignored);  // for WriteNow
    if (tls != nullptr) tls_.emplace(socket_, tls);
  }
  HttpStream(const HttpStream&) = delete;
  HttpStream& operator=(const HttpStream&) = delete;

  bool has_tls() const { return tls_.has_value(); }
  boost::asio::ip::tcp::socket& socket() { return socket_; }

  // REQUIRES: has_tls(), and nothing was read or written.
  template <typename Done>
  void Handshake(Done done) {
    tls_->async_handshake(boost::asio::ssl::stream_base::server, std::move(done));
  }
  // What a handshake says that failed because the client speaks plain HTTP. Then, and only then,
  // LeaveTls() makes the stream a plain one, on which it can be told so.
  static bool IsPlainHttp(const Error& error) {
    return error.category() == boost::asio::error::get_ssl_category() &&
           ERR_GET_REASON(static_cast<unsigned long>(error.value())) == SSL_R_HTTP_REQUEST;
  }
  void LeaveTls() { tls_.reset(); }

  template <typename Done>
  void ReadSome(boost::asio::mutable_buffer buffer, Done done) {
    if (tls_.has_value()) return tls_->async_read_some(buffer, std::move(done));
    socket_.async_read_some(buffer, std::move(done));
  }
  template <typename Done>
  void WriteSome(boost::asio::const_buffer buffer, Done done) {
    if (tls_.has_value()) return tls_->async_write_some(buffer, std::move(done));
    socket_.async_write_some(buffer, std::move(done));
  }
  // What can be written at once; would_block when nothing can, which in TLS is always so.
  size_t WriteNow(boost::asio::const_buffer buffer, Error* error) {
    if (!tls_.has_value()) return socket_.write_some(buffer, *error);
    *error = boost::asio::error::would_block;
    return 0;
  }

  // Tells the client that nothing more comes; it may be read on. `done` once it has said the same,
  // in TLS; plain streams never call it.
  template <typename Done>
  void EndWriting(Done done) {
    if (tls_.has_value()) return tls_->async_shutdown(std::move(done));
    Error ignored;
    socket_.shutdown(boost::asio::ip::tcp::socket::shutdown_send, ignored);
  }

  void Close() {
    Error ignored;
    socket_.close(ignored);
  }

 private:
  boost::asio::ip::tcp::socket socket_;
  std::optional<boost::asio::ssl::stream<boost::asio::ip::tcp::socket&>> tls_;
};

}  // namespace sluice::router
