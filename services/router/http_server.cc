#include "services/router/http_server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <deque>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/log.h"
#include "services/base/open_files.h"
#include "services/router/http_session.h"
#include "services/router/tls_certificate.h"

namespace sluice::router {
namespace {

using boost::asio::ip::tcp;
using boost::system::error_code;

constexpr std::chrono::seconds kSweepPeriod{1};
constexpr std::chrono::milliseconds kAcceptRetry{50};
constexpr std::chrono::seconds kWarnPeriod{10};

constexpr absl::string_view kFull =
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    "Connection: close\r\nContent-Length: 112\r\n\r\n"
    R"({"error":{"message":"This server has too many connections.","type":"overloaded_error","param":null,"code":null}})";

}  // namespace

class HttpServer::Impl final : public HttpSessionOwner, public std::enable_shared_from_this<Impl> {
 public:
  Impl(boost::asio::io_context* loop, const HttpServerOptions& options, HttpHandler* handler)
      : options_(options), handler_(handler), acceptor_(*loop), timer_(*loop) {}

  absl::Status Listen() {
    error_code error;
    const auto address = boost::asio::ip::make_address(options_.host, error);
    tcp::endpoint endpoint;
    if (!error) {
      endpoint = tcp::endpoint(address, static_cast<uint16_t>(options_.port));
    } else {
      tcp::resolver resolver(acceptor_.get_executor());
      const auto found = resolver.resolve(options_.host, std::to_string(options_.port), error);
      if (error || found.empty()) return Unavailable(error);
      endpoint = found.begin()->endpoint();
    }
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(boost::asio::socket_base::max_listen_connections, error);
    if (!error) port_ = acceptor_.local_endpoint(error).port();
    if (error) return Unavailable(error);
    return absl::OkStatus();
  }

  void Run() {
    Accept();
    Sweep();
  }

  void BeginDrain() {
    StopAccepting();
    draining_ = true;
    for (const auto& session : Sessions()) session->BeginDrain();
  }

  void Stop() {
    StopAccepting();
    timer_.cancel();
    stopped_ = true;
    for (const auto& session : Sessions()) session->Close();
  }

  void OnSecured(HttpSession* session) override { std::erase(handshakes_, session); }
  void OnClosed(HttpSession* session) override {
    std::erase(handshakes_, session);
    sessions_.erase(session);
  }
  bool CountReceiving(int64_t change) override {
    if (change > 0 &&
        receiving_bytes_ + change > static_cast<int64_t>(options_.receiving_bytes_max)) {
      return false;
    }
    receiving_bytes_ += change;
    return true;
  }

  int port() const { return port_; }
  int num_connections() const { return static_cast<int>(sessions_.size()); }

 private:
  absl::Status Unavailable(const error_code& error) const {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options_.host, ":",
                                               options_.port, ": ", error.message()));
  }

  void StopAccepting() {
    error_code ignored;
    acceptor_.close(ignored);
  }

  // Copies: closing one takes it out of the map.
  std::vector<std::shared_ptr<HttpSession>> Sessions() const {
    std::vector<std::shared_ptr<HttpSession>> all;
    all.reserve(sessions_.size());
    for (const auto& [key, session] : sessions_) all.push_back(session);
    return all;
  }

  void Accept() {
    acceptor_.async_accept([self = shared_from_this()](error_code error, tcp::socket socket) {
      if (self->stopped_ || self->draining_) return;
      if (error) {
        self->WarnOfDescriptors(error);
        return self->AcceptLater();
      }
      self->Take(std::move(socket));
      self->Accept();
    });
  }

  // The client sees nothing but a connection that hangs.
  void WarnOfDescriptors(const error_code& error) {
    const bool of_process = error == boost::system::errc::too_many_files_open;
    if (!of_process && error != boost::system::errc::too_many_files_open_in_system) return;
    const auto now = std::chrono::steady_clock::now();
    if (now < warn_after_) return;
    warn_after_ = now + kWarnPeriod;
    LogWarn(of_process ? "out of file descriptors (nofile): new connections wait; raise the limit "
                         "(ulimit -n, LimitNOFILE) or lower router.connections_max"
                       : "the machine is out of file descriptors: new connections wait; raise "
                         "fs.file-max",
            {{"nofile", OpenFilesLimit()}, {"connections", num_connections()}});
  }

  void AcceptLater() {
    auto timer =
        std::make_shared<boost::asio::steady_timer>(acceptor_.get_executor(), kAcceptRetry);
    timer->async_wait([self = shared_from_this(), timer](error_code error) {
      if (!error && !self->stopped_ && !self->draining_) self->Accept();
    });
  }

  void Take(tcp::socket socket) {
    if (num_connections() >= options_.connections_max) {
      if (options_.tls != nullptr) return;
      error_code ignored;
      socket.non_blocking(true, ignored);
      socket.write_some(boost::asio::buffer(kFull.data(), kFull.size()), ignored);
      return;
    }
    ssl_st* const tls = options_.tls == nullptr ? nullptr : options_.tls->NewSession();
    auto session = std::make_shared<HttpSession>(std::move(socket), tls, options_, handler_, this);
    sessions_.emplace(session.get(), session);
    if (tls != nullptr) {
      // Clients that mean it are done in a moment: those that wait longest most likely do not.
      if (std::ssize(handshakes_) >= options_.handshakes_max) handshakes_.front()->Close();
      handshakes_.push_back(session.get());
    }
    session->Start();
  }

  void Sweep() {
    timer_.expires_after(kSweepPeriod);
    timer_.async_wait([self = shared_from_this()](error_code error) {
      if (error || self->stopped_) return;
      const auto now = std::chrono::steady_clock::now();
      for (const auto& session : self->Sessions()) session->CheckTime(now);
      self->Sweep();
    });
  }

  const HttpServerOptions options_;
  HttpHandler* const handler_;
  tcp::acceptor acceptor_;
  boost::asio::steady_timer timer_;
  absl::flat_hash_map<HttpSession*, std::shared_ptr<HttpSession>> sessions_;
  std::deque<HttpSession*> handshakes_;  // oldest first
  int64_t receiving_bytes_ = 0;          // of bodies that are coming in
  int port_ = 0;
  bool draining_ = false;
  bool stopped_ = false;
  std::chrono::steady_clock::time_point warn_after_;
};

HttpServer::HttpServer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() { impl_->Stop(); }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(boost::asio::io_context* loop,
                                                              const HttpServerOptions& options,
                                                              HttpHandler* handler) {
  auto impl = std::make_shared<Impl>(loop, options, handler);
  SLUICE_RETURN_IF_ERROR(impl->Listen());
  impl->Run();
  return absl::WrapUnique(new HttpServer(std::move(impl)));
}

int HttpServer::port() const { return impl_->port(); }
int HttpServer::num_connections() const { return impl_->num_connections(); }
void HttpServer::BeginDrain() { impl_->BeginDrain(); }

}  // namespace sluice::router
