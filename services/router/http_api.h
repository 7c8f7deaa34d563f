// OpenAI's API and its kin over HTTP: which path does what. docs/reference/api.md is for people.
//
//   POST /v1/chat/completions, /v1/completions, /tokenize, /detokenize (and both under /v1)
//   GET  /v1/models, /v1/models/NAME, /version, /load, /metrics
//   GET  /health, /readyz, /ping (200: a request can be placed; else 503), /livez
//
// With API keys, everything but the health paths wants one.
//
// Threads: the loop's.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "services/base/metrics.h"
#include "services/router/api_call.h"
#include "services/router/api_error.h"
#include "services/router/api_keys.h"
#include "services/router/http_message.h"

namespace sluice::router {

struct HttpApiOptions {
  ApiKeys keys;
  std::string version;
  int64_t created = 0;  // of the model, Unix seconds
};

class HttpApi final : public HttpHandler {
 public:
  // What is passed outlives it.
  HttpApi(HttpApiOptions options, Edge* edge, const Metrics* metrics);

  bool Admit(const HttpRequest& head, HttpReply* reply) override;
  std::unique_ptr<HttpWork> Handle(HttpRequest request, HttpReply* reply) override;

 private:
  using Route = std::unique_ptr<HttpWork> (HttpApi::*)(HttpRequest*, HttpReply*);
  struct Entry {
    const char* method;  // GET (HEAD too), POST
    Route route;
    bool open;  // without a key
  };

  static const Entry* Find(absl::string_view path);
  std::unique_ptr<HttpWork> Health(HttpRequest* request, HttpReply* reply);
  std::unique_ptr<HttpWork> Live(HttpRequest* request, HttpReply* reply);
  std::unique_ptr<HttpWork> Models(HttpRequest* request, HttpReply* reply);
  std::unique_ptr<HttpWork> Version(HttpRequest* request, HttpReply* reply);
  std::unique_ptr<HttpWork> Load(HttpRequest* request, HttpReply* reply);
  std::unique_ptr<HttpWork> MetricsText(HttpRequest* request, HttpReply* reply);
  std::unique_ptr<HttpWork> Chat(HttpRequest* request, HttpReply* reply);
  std::unique_ptr<HttpWork> Completions(HttpRequest* request, HttpReply* reply);
  std::unique_ptr<HttpWork> Tokenize(HttpRequest* request, HttpReply* reply);
  std::unique_ptr<HttpWork> Detokenize(HttpRequest* request, HttpReply* reply);

  std::unique_ptr<HttpWork> Generate(const char* api, ApiCall::Parse parse, int64_t bytes,
                                     HttpReply* reply);
  std::unique_ptr<HttpWork> RunOnPool(int64_t bytes,
                                      std::function<absl::StatusOr<std::string>()> make_body,
                                      HttpReply* reply);
  void SendError(const ApiError& error, HttpReply* reply) const;
  HttpHeaders CommonHeaders() const;

  const HttpApiOptions options_;
  Edge* const edge_;
  const Metrics* const metrics_;
  // Of the request that is being handled.
  std::string request_id_;
  std::string tenant_;
};

}  // namespace sluice::router
