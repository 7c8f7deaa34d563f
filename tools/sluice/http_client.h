// A client for the cluster's HTTP API, one connection per call, plain or over TLS.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace boost::asio::ssl {
class context;
}

namespace sluice::cli {

struct HttpResponse {
  int status = 0;
  std::string body;
  absl::Duration retry_after;  // as the server asks; zero when it does not
};

// What an answer other than 200 says: the message of its {"error": {...}}, or the start of its
// body.
absl::Status ErrorOf(const HttpResponse& response);

// From several threads at a time. Errors: Unavailable (nobody there, connection lost),
// DeadlineExceeded, Cancelled; each names the endpoint.
class HttpClient {
 public:
  // "http://127.0.0.1:8000" or https, with or without a path below which the API stands ("/v1" at
  // the end is taken away). InvalidArgument for anything else. `ca`: a PEM file with those who may
  // have signed the server's certificate; empty: whom this system trusts. NotFound or
  // InvalidArgument when that is no such file.
  static absl::StatusOr<HttpClient> Create(const std::string& endpoint, const std::string& api_key,
                                           const std::string& ca = "");

  absl::StatusOr<HttpResponse> Get(const std::string& path, absl::Duration timeout) const;
  absl::StatusOr<HttpResponse> Post(const std::string& path, const std::string& json,
                                    absl::Duration timeout) const;

  // Reads an answer of server-sent events and gives the data of each to `on_event`, until the
  // server ends it. `silence_max`: longer without a byte is an error. Setting `*cancelled` ends the
  // call with Cancelled within a moment. An answer other than 200 is its ErrorOf().
  absl::Status PostForEvents(const std::string& path, const std::string& json,
                             absl::Duration silence_max, const std::atomic<bool>* cancelled,
                             absl::FunctionRef<void(absl::string_view data)> on_event) const;

  const std::string& endpoint() const { return endpoint_; }

 private:
  HttpClient() = default;
  class Call;

  std::string endpoint_;  // as given
  std::string host_, port_, base_path_, api_key_;
  std::shared_ptr<boost::asio::ssl::context> tls_;  // null: plain
};

// Cuts a stream of bytes into the data of server-sent events.
class EventParser {
 public:
  void Feed(absl::string_view bytes, absl::FunctionRef<void(absl::string_view data)> on_event);

 private:
  std::string line_;
  std::string data_;
  bool has_data_ = false;
};

// The id of the first model that the endpoint offers.
absl::StatusOr<std::string> FirstModel(const HttpClient& client);

}  // namespace sluice::cli
