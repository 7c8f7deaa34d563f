#include "tools/sluice/http_client.h"

#include <chrono>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/address.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/ssl/context.hpp"
#include "boost/asio/ssl/error.hpp"
#include "boost/asio/ssl/host_name_verification.hpp"
#include "boost/asio/ssl/stream.hpp"
#include "boost/beast/core.hpp"
#include "boost/beast/http.hpp"
#include "kernels/base/status.h"
#include "services/base/mapped_file.h"
#include "services/base/version.h"

namespace sluice::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

constexpr absl::Duration kConnectTimeout = absl::Seconds(5);
constexpr size_t kCaBytesMax = size_t{16} << 20;
constexpr auto kCancelPoll = std::chrono::milliseconds(50);
constexpr uint64_t kBodyBytesMax = uint64_t{64} << 20;

absl::StatusOr<std::shared_ptr<asio::ssl::context>> MakeTls(const std::string& ca) {
  auto tls = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_client);
  tls->set_verify_mode(asio::ssl::verify_peer);
  boost::system::error_code error;
  if (ca.empty()) {
    tls->set_default_verify_paths(error);
    if (error) return absl::UnavailableError("this system's trusted certificates cannot be read");
    return tls;
  }
  SLUICE_ASSIGN_OR_RETURN(const std::string pem, ReadFile(ca, kCaBytesMax));
  tls->add_certificate_authority(asio::buffer(pem), error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat(ca, ": holds no certificate in PEM form (", error.message(), ")"));
  }
  return tls;
}

}  // namespace

// One request and its answer.
class HttpClient::Call {
 public:
  Call(const HttpClient& client, const std::atomic<bool>* cancelled)
      : client_(client), cancelled_(cancelled) {}

  absl::Status Send(http::verb verb, const std::string& path, const std::string& body,
                    absl::Duration timeout) {
    boost::system::error_code error;
    asio::ip::tcp::resolver resolver(context_);
    const auto addresses = resolver.resolve(client_.host_, client_.port_, error);
    if (error) return Lost("cannot find", error);
    SLUICE_RETURN_IF_ERROR(
        Await("cannot connect to", std::min(timeout, kConnectTimeout), [&](auto done) {
          stream_.async_connect(addresses, [done](auto e, const auto&) { done(e); });
        }));
    if (client_.tls_ != nullptr) SLUICE_RETURN_IF_ERROR(Handshake(timeout));
    http::request<http::string_body> request(verb, absl::StrCat(client_.base_path_, path), 11);
    request.set(http::field::host, absl::StrCat(client_.host_, ":", client_.port_));
    request.set(http::field::user_agent, std::string(SoftwareVersion()));
    request.set(http::field::connection, "close");
    if (!client_.api_key_.empty()) {
      request.set(http::field::authorization, absl::StrCat("Bearer ", client_.api_key_));
    }
    if (!body.empty()) {
      request.set(http::field::content_type, "application/json");
      request.body() = body;
    }
    request.prepare_payload();
    return Await("cannot send to", timeout, [&](auto done) {
      WithStream([&](auto& stream) {
        http::async_write(stream, request, [done](auto e, size_t) { done(e); });
      });
    });
  }

  absl::Status ReadHeader(absl::Duration timeout) {
    parser_.body_limit(boost::none);
    return Await("no answer from", timeout, [&](auto done) {
      WithStream([&](auto& stream) {
        http::async_read_header(stream, buffer_, parser_, [done](auto e, size_t) { done(e); });
      });
    });
  }

  HttpResponse Header() const {
    HttpResponse response{.status = static_cast<int>(parser_.get().result_int())};
    const auto field = parser_.get()[http::field::retry_after];
    int64_t seconds = 0;
    if (absl::SimpleAtoi(absl::string_view(field.data(), field.size()), &seconds)) {
      response.retry_after = absl::Seconds(seconds);
    }
    return response;
  }

  // The next bytes of the body; empty at its end.
  absl::StatusOr<std::string> ReadSome(absl::Duration timeout) {
    if (parser_.is_done()) return std::string();
    std::string bytes(16384, '\0');
    parser_.get().body().data = bytes.data();
    parser_.get().body().size = bytes.size();
    SLUICE_RETURN_IF_ERROR(Await("lost the connection to", timeout, [&](auto done) {
      WithStream([&](auto& stream) {
        http::async_read_some(stream, buffer_, parser_, [done](auto e, size_t) {
          done(e == http::error::need_buffer ? boost::system::error_code() : e);
        });
      });
    }));
    bytes.resize(bytes.size() - parser_.get().body().size);
    if (bytes.empty() && !parser_.is_done()) return ReadSome(timeout);  // a chunk's head alone
    return bytes;
  }

  absl::StatusOr<HttpResponse> ReadAll(absl::Duration timeout) {
    HttpResponse response = Header();
    while (true) {
      SLUICE_ASSIGN_OR_RETURN(const std::string bytes, ReadSome(timeout));
      if (bytes.empty()) return response;
      response.body += bytes;
      if (response.body.size() > kBodyBytesMax) {
        return absl::ResourceExhaustedError(
            absl::StrCat(client_.endpoint_, ": an answer of more than ", kBodyBytesMax, " bytes"));
      }
    }
  }

 private:
  template <typename Use>
  void WithStream(Use use) {
    if (tls_.has_value()) return use(*tls_);
    use(stream_);
  }

  absl::Status Handshake(absl::Duration timeout) {
    tls_.emplace(stream_, *client_.tls_);
    boost::system::error_code not_an_address;
    asio::ip::make_address(client_.host_, not_an_address);
    if (not_an_address) SSL_set_tlsext_host_name(tls_->native_handle(), client_.host_.c_str());
    tls_->set_verify_callback(asio::ssl::host_name_verification(client_.host_));
    const absl::Status status =
        Await("no TLS with", std::min(timeout, kConnectTimeout),
              [&](auto done) { tls_->async_handshake(asio::ssl::stream_base::client, done); });
    const long verified = SSL_get_verify_result(tls_->native_handle());
    if (status.ok() || verified == X509_V_OK) return status;
    return absl::UnavailableError(absl::StrCat(status.message(), ": ",
                                               X509_verify_cert_error_string(verified),
                                               " (--ca FILE says whom to trust)"));
  }

  // Starts an asynchronous operation and waits for it, for the timeout, or to be cancelled.
  template <typename Start>
  absl::Status Await(const char* what, absl::Duration timeout, Start start) {
    std::optional<boost::system::error_code> result;
    stream_.expires_after(absl::ToChronoNanoseconds(timeout));
    start([&result](boost::system::error_code error) { result = error; });
    context_.restart();
    while (!result.has_value()) {
      context_.run_one_for(kCancelPoll);
      if (cancelled_ != nullptr && *cancelled_ && !result.has_value()) {
        stream_.cancel();
        context_.run();
        return absl::CancelledError(absl::StrCat(client_.endpoint_, ": cancelled"));
      }
      if (context_.stopped()) context_.restart();
    }
    if (!*result) return absl::OkStatus();
    return Lost(what, *result);
  }

  absl::Status Lost(const char* what, const boost::system::error_code& error) const {
    if (error == beast::error::timeout) {
      return absl::DeadlineExceededError(
          absl::StrCat(what, " ", client_.endpoint_, ": no answer in time"));
    }
    return absl::UnavailableError(
        absl::StrCat(what, " ", client_.endpoint_, ": ", error.message()));
  }

  const HttpClient& client_;
  const std::atomic<bool>* const cancelled_;
  asio::io_context context_;
  beast::tcp_stream stream_{context_};
  std::optional<asio::ssl::stream<beast::tcp_stream&>> tls_;
  beast::flat_buffer buffer_;
  http::response_parser<http::buffer_body> parser_;
};

absl::Status ErrorOf(const HttpResponse& response) {
  if (response.status == 200) return absl::OkStatus();
  const auto json = nlohmann::json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  std::string message = response.body.substr(0, 300);
  if (json.is_object() && json.contains("error")) {
    const nlohmann::json& error = json["error"];
    if (error.is_object() && error.contains("message") && error["message"].is_string()) {
      message = error["message"].get<std::string>();
    }
  }
  const std::string text = absl::StrCat("HTTP ", response.status, ": ", message);
  switch (response.status) {
    case 401:
    case 403:
      return absl::PermissionDeniedError(text);
    case 404:
      return absl::NotFoundError(text);
    case 429:
      return absl::ResourceExhaustedError(text);
    case 503:
      return absl::UnavailableError(text);
    default:
      return response.status < 500 ? absl::InvalidArgumentError(text) : absl::InternalError(text);
  }
}

absl::StatusOr<HttpClient> HttpClient::Create(const std::string& endpoint,
                                              const std::string& api_key, const std::string& ca) {
  absl::string_view rest = endpoint;
  const bool secure = absl::ConsumePrefix(&rest, "https://");
  if (!secure && !absl::ConsumePrefix(&rest, "http://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", endpoint, "' is not an endpoint like http://127.0.0.1:8000"));
  }
  const size_t slash = rest.find('/');
  absl::string_view path = slash == absl::string_view::npos ? "" : rest.substr(slash);
  absl::string_view host = rest.substr(0, slash);
  while (absl::ConsumeSuffix(&path, "/")) {
  }
  absl::ConsumeSuffix(&path, "/v1");
  absl::string_view port = secure ? "443" : "80";
  const size_t colon = host.rfind(':');
  if (colon != absl::string_view::npos && !absl::EndsWith(host, "]")) {
    port = host.substr(colon + 1);
    host = host.substr(0, colon);
  }
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  int number = 0;
  if (host.empty() || !absl::SimpleAtoi(port, &number) || number < 1 || number > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", endpoint, "' is not an endpoint like http://127.0.0.1:8000"));
  }
  HttpClient client;
  if (secure) {
    SLUICE_ASSIGN_OR_RETURN(client.tls_, MakeTls(ca));
  }
  client.endpoint_ = endpoint;
  client.host_ = std::string(host);
  client.port_ = std::string(port);
  client.base_path_ = std::string(path);
  client.api_key_ = api_key;
  return client;
}

absl::StatusOr<HttpResponse> HttpClient::Get(const std::string& path,
                                             absl::Duration timeout) const {
  Call call(*this, nullptr);
  SLUICE_RETURN_IF_ERROR(call.Send(http::verb::get, path, "", timeout));
  SLUICE_RETURN_IF_ERROR(call.ReadHeader(timeout));
  return call.ReadAll(timeout);
}

absl::StatusOr<HttpResponse> HttpClient::Post(const std::string& path, const std::string& json,
                                              absl::Duration timeout) const {
  Call call(*this, nullptr);
  SLUICE_RETURN_IF_ERROR(call.Send(http::verb::post, path, json, timeout));
  SLUICE_RETURN_IF_ERROR(call.ReadHeader(timeout));
  return call.ReadAll(timeout);
}

absl::Status HttpClient::PostForEvents(
    const std::string& path, const std::string& json, absl::Duration silence_max,
    const std::atomic<bool>* cancelled,
    absl::FunctionRef<void(absl::string_view data)> on_event) const {
  Call call(*this, cancelled);
  SLUICE_RETURN_IF_ERROR(call.Send(http::verb::post, path, json, silence_max));
  SLUICE_RETURN_IF_ERROR(call.ReadHeader(silence_max));
  if (call.Header().status != 200) {
    SLUICE_ASSIGN_OR_RETURN(const HttpResponse response, call.ReadAll(silence_max));
    return ErrorOf(response);
  }
  EventParser parser;
  while (true) {
    SLUICE_ASSIGN_OR_RETURN(const std::string bytes, call.ReadSome(silence_max));
    if (bytes.empty()) return absl::OkStatus();
    parser.Feed(bytes, on_event);
  }
}

void EventParser::Feed(absl::string_view bytes,
                       absl::FunctionRef<void(absl::string_view data)> on_event) {
  for (const char c : bytes) {
    if (c != '\n') {
      line_.push_back(c);
      continue;
    }
    absl::string_view line = absl::StripSuffix(line_, "\r");
    if (line.empty()) {
      if (has_data_) on_event(data_);
      data_.clear();
      has_data_ = false;
    } else if (absl::ConsumePrefix(&line, "data:")) {
      absl::ConsumePrefix(&line, " ");
      if (has_data_) data_.push_back('\n');
      data_.append(line.data(), line.size());
      has_data_ = true;
    }
    line_.clear();
  }
}

absl::StatusOr<std::string> FirstModel(const HttpClient& client) {
  SLUICE_ASSIGN_OR_RETURN(const HttpResponse response, client.Get("/v1/models", absl::Seconds(10)));
  SLUICE_RETURN_IF_ERROR(ErrorOf(response));
  const auto json = nlohmann::json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  if (json.is_object() && json.contains("data") && json["data"].is_array() &&
      !json["data"].empty() && json["data"][0].is_object() && json["data"][0].contains("id") &&
      json["data"][0]["id"].is_string()) {
    return json["data"][0]["id"].get<std::string>();
  }
  return absl::NotFoundError(absl::StrCat(client.endpoint(), "/v1/models names no model"));
}

}  // namespace sluice::cli
