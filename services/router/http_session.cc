#include "services/router/http_session.h"

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/router/api_error.h"

namespace sluice::router {
namespace {

constexpr size_t kInputBytes = 4096;
constexpr size_t kBodyInputBytes = 64 << 10;
// Of requests sent before the answer to the one before: beyond, the client's window fills.
constexpr size_t kPipelinedBytesMax = 64 << 10;
constexpr absl::Duration kLinger = absl::Seconds(2);
constexpr absl::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

const char* ReasonPhrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Internal Server Error";
  }
}

}  // namespace

HttpSession::HttpSession(boost::asio::ip::tcp::socket socket, ssl_st* tls,
                         const HttpServerOptions& options, HttpHandler* handler,
                         HttpSessionOwner* owner)
    : stream_(std::move(socket), tls),
      options_(options),
      handler_(handler),
      owner_(owner),
      reader_(options.limits) {}

void HttpSession::Start() {
  boost::system::error_code ignored;
  stream_.socket().set_option(boost::asio::ip::tcp::no_delay(true), ignored);
  if (stream_.has_tls()) return Handshake();
  Advance();
}

void HttpSession::Handshake() {
  SetDeadline(options_.handshake_timeout);
  stream_.Handshake([self = shared_from_this()](const HttpStream::Error& error) {
    if (self->closed_) return;
    if (error) return self->OnHandshakeFailed(error);
    self->owner_->OnSecured(self.get());
    self->Advance();
  });
}

void HttpSession::OnHandshakeFailed(const HttpStream::Error& error) {
  if (!HttpStream::IsPlainHttp(error)) return Close();
  stream_.LeaveTls();
  answering_ = true;
  keep_alive_ = false;
  const ApiError plain = HttpError(400, "This port speaks HTTPS, and the request was plain HTTP.");
  Send({.status = plain.http_status, .body = ErrorJson(plain)});
}

void HttpSession::SetDeadline(absl::Duration from_now) {
  deadline_ = std::chrono::steady_clock::now() + absl::ToChronoMicroseconds(from_now);
}

void HttpSession::CheckTime(Time now) {
  if (now >= deadline_) return Close();
  if (input_ended_) Probe();
}

void HttpSession::BeginDrain() {
  draining_ = true;
  keep_alive_ = false;  // an answer that has not begun says so
  if (!answering_ && !closing_) Close();
}

void HttpSession::Close() {
  if (closed_) return;
  closed_ = true;
  stream_.Close();
  DropBody();
  // Not at once: this may be a call from the work.
  boost::asio::post(stream_.socket().get_executor(),
                    [self = shared_from_this()] { self->work_.reset(); });
  owner_->OnClosed(this);
}

void HttpSession::Read() {
  if (reading_ || closed_) return;
  reading_ = true;
  const size_t bytes = reader_.state() == HttpReader::State::kBody ? kBodyInputBytes : kInputBytes;
  if (input_.size() != bytes)
    input_ = std::vector<char>(bytes);  // thousands wait with the small one
  stream_.ReadSome(boost::asio::buffer(input_),
                   [self = shared_from_this()](const HttpStream::Error& error, size_t bytes) {
                     self->reading_ = false;
                     if (error == boost::asio::error::eof) return self->OnInputEnd();
                     if (error) return self->Close();  // the client has gone
                     self->OnRead(bytes);
                   });
}

void HttpSession::OnRead(size_t bytes) {
  if (closed_) return;
  if (closing_) return Read();
  reader_.Feed({input_.data(), bytes});
  Advance();
}

// A client that has gone and one that only sends no more look the same until something is sent:
// whoever has gone then resets the connection, of which the socket tells.
void HttpSession::OnInputEnd() {
  if (closed_) return;
  if (closing_) return Close();
  input_ended_ = true;
  stream_.socket().async_wait(boost::asio::socket_base::wait_error,
                              [self = shared_from_this()](const HttpStream::Error& error) {
                                if (!error) self->Close();
                              });
  Probe();
  Advance();
}

// What every client ignores: an interim response, or a comment between events. HTTP/1.0 has
// neither.
void HttpSession::Probe() {
  if (closed_ || !answering_ || answer_complete_ || http_1_0_) return;
  if (written_ < writing_.size() || !output_.empty()) return;
  if (streaming_) return Write(":\n\n");
  output_.append(kContinue.data(), kContinue.size());
  Flush();
}

void HttpSession::Advance() {
  if (closed_ || closing_) return;
  if (answering_) {
    // Only to learn when the client goes, and what it wants next.
    if (reader_.num_kept_bytes() < kPipelinedBytesMax && !input_ended_) Read();
    return;
  }
  const HttpReader::State state = reader_.state();
  const bool wants_more = state != HttpReader::State::kReady && state != HttpReader::State::kError;
  if (input_ended_ && wants_more) return Close();
  const bool new_state = state != timed_state_;
  timed_state_ = state;
  switch (state) {
    case HttpReader::State::kIdle:
      if (draining_) return Close();
      if (new_state) SetDeadline(options_.idle_timeout);
      return Read();
    case HttpReader::State::kHead:
      if (new_state) SetDeadline(options_.header_timeout);
      return Read();
    case HttpReader::State::kBody:
      if (new_state) {
        if (!AdmitBody()) return;
        SetDeadline(options_.body_timeout);
      }
      if (!CountBody()) return RefuseBody();
      if (reader_.TakeExpectsContinue()) {
        output_.append(kContinue.data(), kContinue.size());
        Flush();
      }
      return Read();
    case HttpReader::State::kReady:
      return Dispatch();
    case HttpReader::State::kError:
      return Refuse();
  }
}

// Before a byte of the body is waited for: whoever may not ask need not be read.
bool HttpSession::AdmitBody() {
  const HttpRequest head = reader_.Head();
  answering_ = true;
  keep_alive_ = false;
  http_1_0_ = head.http_1_0;
  is_head_ = head.method == "HEAD";
  chunked_ = false;
  answering_ = !handler_->Admit(head, this);
  return !answering_;
}

bool HttpSession::CountBody() {
  const int64_t bytes = static_cast<int64_t>(reader_.num_body_bytes());
  if (!owner_->CountReceiving(bytes - counted_bytes_)) return false;
  counted_bytes_ = bytes;
  return true;
}

void HttpSession::DropBody() { owner_->CountReceiving(-std::exchange(counted_bytes_, 0)); }

void HttpSession::RefuseBody() {
  DropBody();
  reader_.Drop();
  answering_ = true;
  keep_alive_ = false;
  const ApiError error =
      HttpError(503, "Too many bodies are being received at once; come again in a moment.");
  Send({.status = error.http_status, .headers = {{"Retry-After", "1"}}, .body = ErrorJson(error)});
}

void HttpSession::Dispatch() {
  DropBody();
  HttpRequest request = reader_.Take();
  answering_ = true;
  answer_complete_ = false;
  keep_alive_ = request.keep_alive && !draining_;
  http_1_0_ = request.http_1_0;
  is_head_ = request.method == "HEAD";
  chunked_ = false;
  if (written_ < writing_.size()) {
    SetDeadline(options_.write_timeout);  // something is still on its way out
  } else {
    deadline_ = Time::max();
  }
  std::unique_ptr<HttpWork> work = handler_->Handle(std::move(request), this);
  if (!closed_) work_ = std::move(work);
  Advance();
}

void HttpSession::Refuse() {
  answering_ = true;
  keep_alive_ = false;
  http_1_0_ = is_head_ = chunked_ = false;
  const ApiError error = HttpError(reader_.http_status(), reader_.error());
  Send({.status = error.http_status, .body = ErrorJson(error)});
}

std::string HttpSession::Head(int status, absl::string_view content_type,
                              const HttpHeaders& headers) const {
  std::string head = absl::StrCat("HTTP/1.1 ", status, " ", ReasonPhrase(status),
                                  "\r\nContent-Type: ", content_type, "\r\n");
  for (const auto& [name, value] : headers) absl::StrAppend(&head, name, ": ", value, "\r\n");
  if (!keep_alive_) head += "Connection: close\r\n";
  if (keep_alive_ && http_1_0_) head += "Connection: keep-alive\r\n";
  return head;
}

void HttpSession::Send(HttpResponse response) {
  if (closed_) return;
  absl::StrAppend(&output_, Head(response.status, response.content_type, response.headers),
                  "Content-Length: ", response.body.size(), "\r\n\r\n",
                  is_head_ ? absl::string_view() : absl::string_view(response.body));
  answer_complete_ = true;
  Flush();
}

void HttpSession::BeginStream(const HttpHeaders& headers) {
  if (closed_) return;
  streaming_ = true;
  chunked_ = !http_1_0_;
  if (http_1_0_) keep_alive_ = false;  // the end of the connection is the end of the stream
  absl::StrAppend(&output_, Head(200, "text/event-stream; charset=utf-8", headers),
                  "Cache-Control: no-cache\r\n", chunked_ ? "Transfer-Encoding: chunked\r\n" : "",
                  "\r\n");
}

void HttpSession::Write(absl::string_view bytes) {
  if (!closed_ && AddPiece(bytes)) Flush();
}

bool HttpSession::AddPiece(absl::string_view bytes) {
  if (bytes.empty()) return true;  // an empty chunk would be the end
  if (output_.size() + (writing_.size() - written_) + bytes.size() > options_.stream_bytes_max) {
    Close();
    return false;
  }
  if (chunked_) {
    absl::StrAppend(&output_, absl::Hex(bytes.size()), "\r\n", bytes, "\r\n");
  } else {
    output_.append(bytes.data(), bytes.size());
  }
  return true;
}

void HttpSession::EndStream(absl::string_view last) {
  if (closed_ || !AddPiece(last)) return;
  if (chunked_) output_ += "0\r\n\r\n";
  answer_complete_ = true;
  Flush();
}

void HttpSession::Flush() {
  if (closed_ || written_ < writing_.size() || output_.empty()) return;
  writing_.swap(output_);
  output_.clear();
  written_ = 0;
  OnWritten(0);
}

void HttpSession::OnWritten(size_t bytes) {
  if (closed_) return;
  written_ += bytes;
  if (written_ == writing_.size()) {
    writing_.clear();
    written_ = 0;
    if (!output_.empty()) return Flush();
    if (answering_) deadline_ = Time::max();
    if (answer_complete_) FinishAnswer();
    return;
  }
  const auto rest = boost::asio::buffer(writing_.data() + written_, writing_.size() - written_);
  // A piece of a stream mostly fits into the socket's buffer: no operation to queue and to end. Not
  // so the last one, at whose end the work goes: this may be a call from it.
  if (!answer_complete_) {
    HttpStream::Error error;
    const size_t count = stream_.WriteNow(rest, &error);
    if (!error) return OnWritten(count);
    if (error != boost::asio::error::would_block) return Close();
  }
  // The deadline of a request that still comes in is the stricter one.
  if (answering_) SetDeadline(options_.write_timeout);
  stream_.WriteSome(rest,
                    [self = shared_from_this()](const HttpStream::Error& error, size_t count) {
                      if (error) return self->Close();
                      self->OnWritten(count);
                    });
}

void HttpSession::FinishAnswer() {
  work_.reset();
  answering_ = answer_complete_ = streaming_ = false;
  timed_state_ = HttpReader::State::kReady;
  // An empty stream's buffers are small; an answer of megabytes need not stay.
  if (writing_.capacity() > kBodyInputBytes) std::string().swap(writing_);
  if (output_.capacity() > kBodyInputBytes) std::string().swap(output_);
  if (keep_alive_ && !draining_) return Advance();
  // Closed at once, with bytes of the client unread, the connection would be reset and the answer
  // might be lost: say that it is over, and wait a little for the client to go.
  closing_ = true;
  stream_.EndWriting([self = shared_from_this()](const HttpStream::Error& error) {
    if (!error) self->Close();  // the client has said that it is over, too
  });
  SetDeadline(kLinger);
  Read();
}

}  // namespace sluice::router
