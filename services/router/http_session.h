// One connection of http_server.h.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "services/router/http_message.h"
#include "services/router/http_reader.h"
#include "services/router/http_server.h"
#include "services/router/http_stream.h"

namespace sluice::router {

class HttpSession;

// Whoever keeps the sessions.
class HttpSessionOwner {
 public:
  virtual ~HttpSessionOwner() = default;
  // The TLS handshake is done.
  virtual void OnSecured(HttpSession* session) = 0;
  // Once.
  virtual void OnClosed(HttpSession* session) = 0;
  // The session keeps so many more (or fewer) bytes of a body that is coming in. False, and nothing
  // is counted, when all sessions together would keep too many.
  virtual bool CountReceiving(int64_t change) = 0;
};

class HttpSession final : public HttpReply, public std::enable_shared_from_this<HttpSession> {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // `tls` as in HttpStream. What else is passed outlives the session.
  HttpSession(boost::asio::ip::tcp::socket socket, ssl_st* tls, const HttpServerOptions& options,
              HttpHandler* handler, HttpSessionOwner* owner);

  void Start();
  // Closes it if it has waited too long for the client. To be called every second or so.
  void CheckTime(Time now);
  // Closes it now if no request is under way, else after the answer.
  void BeginDrain();
  void Close();

  void Send(HttpResponse response) override;
  void BeginStream(const HttpHeaders& headers) override;
  void Write(absl::string_view bytes) override;
  void EndStream(absl::string_view last) override;

 private:
  void Handshake();
  void OnHandshakeFailed(const HttpStream::Error& error);
  void Read();
  void OnRead(size_t bytes);
  void OnInputEnd();
  void Probe();
  void Advance();  // does what the reader's state calls for
  bool AdmitBody();
  bool CountBody();
  void DropBody();
  void RefuseBody();
  void Dispatch();
  void Refuse();  // what the reader could not read
  // Puts bytes of a stream behind what is to be written; false: closed, there was no room.
  bool AddPiece(absl::string_view bytes);
  void Flush();
  void OnWritten(size_t bytes);
  void FinishAnswer();
  std::string Head(int status, absl::string_view content_type, const HttpHeaders& headers) const;
  void SetDeadline(absl::Duration from_now);

  HttpStream stream_;
  const HttpServerOptions& options_;
  HttpHandler* const handler_;
  HttpSessionOwner* const owner_;

  HttpReader reader_;
  std::vector<char> input_;
  bool reading_ = false;
  bool input_ended_ = false;  // the client sends no more; it may have gone, or wait for its answer
  HttpReader::State timed_state_ = HttpReader::State::kReady;  // whose deadline runs

  int64_t counted_bytes_ = 0;  // of the body that is coming in, by the owner

  // The request under way.
  bool answering_ = false;
  bool answer_complete_ = false;  // only to be written
  bool keep_alive_ = true;
  bool http_1_0_ = false;
  bool is_head_ = false;
  bool streaming_ = false;  // BeginStream() was called
  bool chunked_ = false;
  std::unique_ptr<HttpWork> work_;

  std::string output_;  // waits while writing_ is under way
  std::string writing_;
  size_t written_ = 0;
  bool closing_ = false;  // everything was said; reads on so that the client gets it
  bool closed_ = false;
  bool draining_ = false;
  Time deadline_ = Time::max();
};

}  // namespace sluice::router
