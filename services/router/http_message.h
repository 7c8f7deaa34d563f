// HTTP requests and responses as plain data, and the seam between sockets and what they serve.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace sluice::router {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // of the target, without the query
  bool keep_alive = true;
  bool http_1_0 = false;
  HttpHeaders headers;  // names in lower case
  std::string body;

  // The first of that name (in lower case), or nothing.
  absl::string_view Header(absl::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (absl::string_view(key) == name) return value;
    }
    return {};
  }
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  HttpHeaders headers;
  std::string body;
};

// Where one request's answer goes: Send() once, or BeginStream(), Write() any number of times and
// EndStream(). Nothing of it calls back.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual void Send(HttpResponse response) = 0;
  // Server-sent events with status 200.
  virtual void BeginStream(const HttpHeaders& headers) = 0;
  // A client that does not read for too long is cut off: the work is destroyed soon after.
  virtual void Write(absl::string_view bytes) = 0;
  // With its last bytes; not without any.
  virtual void EndStream(absl::string_view last) = 0;
};

// What goes on for a request that is not answered yet. Destroying it ends that: the client is gone.
class HttpWork {
 public:
  virtual ~HttpWork() = default;
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // The header of a request has come and its body has not. False: it was answered by Send(), its
  // body is not read, and the connection is closed.
  virtual bool Admit(const HttpRequest& head, HttpReply* reply) = 0;
  // Of a complete request. Answers now (and may return null) or later. The reply lives until the
  // answer is complete, or the work is destroyed; the work is destroyed after that, never from
  // within a call of it.
  virtual std::unique_ptr<HttpWork> Handle(HttpRequest request, HttpReply* reply) = 0;
};

}  // namespace sluice::router
