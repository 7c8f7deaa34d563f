#include "services/router/http_reader.h"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace sluice::router {
namespace {

namespace http = boost::beast::http;

std::string ToString(boost::beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

struct HttpReader::Impl {
  explicit Impl(const HttpLimits& the_limits) : limits(the_limits) { Reset(); }

  void Reset() {
    parser.emplace();
    parser->header_limit(limits.header_bytes_max);
    parser->body_limit(limits.body_bytes_max);
    parser->eager(true);
    head_bytes = 0;
    told_continue = false;
  }

  void Fail(int status, std::string message) {
    http_status = status;
    error = std::move(message);
  }

  void Parse() {
    size_t begin = 0;
    while (begin < kept.size() && http_status == 0 && !parser->is_done()) {
      begin += ParseNext(absl::string_view(kept).substr(begin));
      if (needs_more) break;
    }
    kept.erase(0, begin);
  }

  // Returns how many bytes it took. Beast sees no more than the header limit at once: it bounds
  // neither chunk extensions nor trailers, would wait for the end of one for ever, and counts the
  // request line in or out of the header by how the bytes were cut.
  size_t ParseNext(absl::string_view bytes) {
    const size_t window = limits.header_bytes_max - head_bytes;
    bytes = bytes.substr(0, window);
    boost::beast::error_code code;
    const size_t used = parser->put(boost::asio::buffer(bytes.data(), bytes.size()), code);
    needs_more = code == http::error::need_more && used == 0;
    head_bytes = parser->is_header_done() ? 0 : head_bytes + used;
    if (code && code != http::error::need_more) {
      FailWith(code);
    } else if (bytes.size() == window && (needs_more || !parser->is_header_done())) {
      FailAtLimit();
    }
    if (http_status == 0 && parser->is_header_done()) CheckFraming();
    return used;
  }

  void FailAtLimit() {
    if (!parser->is_header_done()) return FailWith(http::error::header_limit);
    Fail(400, absl::StrCat("a chunk's header or the trailers have more than ",
                           limits.header_bytes_max, " bytes"));
  }

  // Beast takes a request whose last coding is another than chunked for one without a body: what
  // it announces as its body would be read as the next request (RFC 9112, 6.1 and 6.3).
  void CheckFraming() {
    const auto& message = parser->get();
    const auto coding = message.find(http::field::transfer_encoding);
    if (coding == message.end() || (parser->chunked() && message.version() >= 11)) return;
    Fail(400, absl::StrCat("the Transfer-Encoding is ", ToString(coding->value()),
                           ", wanted chunked as the last, and HTTP/1.1"));
  }

  void FailWith(boost::beast::error_code code) {
    if (code == http::error::header_limit) {
      return Fail(431, absl::StrCat("the request's header has more than ", limits.header_bytes_max,
                                    " bytes"));
    }
    if (code == http::error::body_limit) {
      return Fail(413, absl::StrCat("the request's body has more than ", limits.body_bytes_max,
                                    " bytes, the limit of this server"));
    }
    Fail(400, absl::StrCat("this is not HTTP/1.1: ", code.message()));
  }

  // Of what has come, without the body.
  HttpRequest Head() const {
    const auto& message = parser->get();
    HttpRequest request;
    request.method = ToString(message.method_string());
    request.path = ToString(message.target());
    request.path.resize(std::min(request.path.find('?'), request.path.size()));
    request.keep_alive = message.keep_alive();
    request.http_1_0 = message.version() < 11;
    for (const auto& field : message.base()) {
      request.headers.emplace_back(absl::AsciiStrToLower(ToString(field.name_string())),
                                   ToString(field.value()));
    }
    return request;
  }

  const HttpLimits limits;
  std::optional<http::request_parser<http::string_body>> parser;
  std::string kept;
  size_t head_bytes = 0;    // parsed of a header that is not complete
  bool needs_more = false;  // of what is kept, nothing can be parsed yet
  bool told_continue = false;
  int http_status = 0;
  std::string error;
};

HttpReader::HttpReader(const HttpLimits& limits) : impl_(std::make_unique<Impl>(limits)) {}
HttpReader::~HttpReader() = default;

HttpReader::State HttpReader::state() const {
  if (impl_->http_status != 0) return State::kError;
  if (impl_->parser->is_done()) return State::kReady;
  if (impl_->parser->is_header_done()) return State::kBody;
  return impl_->parser->got_some() || !impl_->kept.empty() ? State::kHead : State::kIdle;
}

HttpReader::State HttpReader::Feed(absl::string_view bytes) {
  impl_->kept.append(bytes.data(), bytes.size());
  impl_->Parse();
  return state();
}

bool HttpReader::TakeExpectsContinue() {
  if (impl_->told_continue || state() != State::kBody) return false;
  impl_->told_continue = true;
  const auto& message = impl_->parser->get();
  return message.version() >= 11 &&
         absl::EqualsIgnoreCase(ToString(message[http::field::expect]), "100-continue");
}

HttpRequest HttpReader::Head() const { return impl_->Head(); }

HttpRequest HttpReader::Take() {
  HttpRequest request = impl_->Head();
  request.body = std::move(impl_->parser->get().body());
  impl_->kept.shrink_to_fit();
  impl_->Reset();
  impl_->Parse();
  return request;
}

size_t HttpReader::num_body_bytes() const { return impl_->parser->get().body().size(); }
void HttpReader::Drop() {
  std::string().swap(impl_->kept);
  impl_->Reset();
}
int HttpReader::http_status() const { return impl_->http_status; }
const std::string& HttpReader::error() const { return impl_->error; }
size_t HttpReader::num_kept_bytes() const { return impl_->kept.size(); }

}  // namespace sluice::router
