#include "services/router/http_api.h"

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "kernels/base/status.h"
#include "services/router/http_answer.h"
#include "services/router/json_writer.h"
#include "services/router/openai_request.h"
#include "services/router/openai_response.h"

namespace sluice::router {
namespace {

constexpr absl::string_view kModelPath = "/v1/models/";

// application/json, with or without parameters, or nothing said.
bool IsJson(absl::string_view content_type) {
  if (content_type.empty()) return true;
  const absl::string_view type =
      absl::StripAsciiWhitespace(content_type.substr(0, content_type.find(';')));
  return absl::EqualsIgnoreCase(type, "application/json") ||
         absl::EndsWithIgnoreCase(type, "+json");
}

absl::StatusOr<std::string> TokenizeBodyToJson(const ServedModel& model, absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const TokenizeBody request, ParseTokenizeRequest(body));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, Tokenize(model, request));
  return TokenizeJson(ids, model.context_tokens,
                      request.return_token_strs ? model.tokenizer.get() : nullptr);
}

absl::StatusOr<std::string> DetokenizeBodyToJson(const ServedModel& model, absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const DetokenizeBody request, ParseDetokenizeRequest(body));
  SLUICE_RETURN_IF_ERROR(CheckModelName(model, request.model));
  return DetokenizeJson(model.tokenizer->Decode(request.tokens, /*skip_special=*/false));
}

// A piece of work on the pool whose result is the response's body.
class PoolWork final : public HttpWork {
 public:
  struct Shared {
    HttpReply* reply;  // null: nobody waits any more
    HttpHeaders headers;
  };
  explicit PoolWork(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}
  ~PoolWork() override { shared_->reply = nullptr; }

 private:
  const std::shared_ptr<Shared> shared_;
};

}  // namespace

HttpApi::HttpApi(HttpApiOptions options, Edge* edge, const Metrics* metrics)
    : options_(std::move(options)), edge_(edge), metrics_(metrics) {}

const HttpApi::Entry* HttpApi::Find(absl::string_view path) {
  static const auto* const kRoutes = new absl::flat_hash_map<absl::string_view, Entry>{
      {"/health", {"GET", &HttpApi::Health, true}},
      {"/readyz", {"GET", &HttpApi::Health, true}},
      {"/ping", {"GET", &HttpApi::Health, true}},
      {"/livez", {"GET", &HttpApi::Live, true}},
      {"/v1/models", {"GET", &HttpApi::Models, false}},
      {"/version", {"GET", &HttpApi::Version, false}},
      {"/load", {"GET", &HttpApi::Load, false}},
      {"/metrics", {"GET", &HttpApi::MetricsText, false}},
      {"/v1/chat/completions", {"POST", &HttpApi::Chat, false}},
      {"/v1/completions", {"POST", &HttpApi::Completions, false}},
      {"/tokenize", {"POST", &HttpApi::Tokenize, false}},
      {"/v1/tokenize", {"POST", &HttpApi::Tokenize, false}},
      {"/detokenize", {"POST", &HttpApi::Detokenize, false}},
      {"/v1/detokenize", {"POST", &HttpApi::Detokenize, false}},
  };
  if (absl::StartsWith(path, kModelPath)) path = "/v1/models";
  const auto found = kRoutes->find(path);
  return found == kRoutes->end() ? nullptr : &found->second;
}

HttpHeaders HttpApi::CommonHeaders() const { return {{"X-Request-Id", request_id_}}; }

void HttpApi::SendError(const ApiError& error, HttpReply* reply) const {
  reply->Send({.status = error.http_status, .headers = CommonHeaders(), .body = ErrorJson(error)});
}

bool HttpApi::Admit(const HttpRequest& head, HttpReply* reply) {
  const absl::string_view id = head.Header("x-request-id");
  request_id_ = IsRequestId(id) ? std::string(id) : NewRequestId(edge_);
  tenant_.clear();
  const Entry* entry = Find(head.path);
  if (entry == nullptr || !entry->open) {
    absl::StatusOr<std::string> tenant = options_.keys.Authenticate(head.Header("authorization"));
    if (!tenant.ok()) {
      edge_->metrics->OnRejected("auth");
      reply->Send(ErrorResponse(tenant.status(), CommonHeaders()));
      return false;
    }
    tenant_ = *std::move(tenant);
  }
  if (entry == nullptr) {
    SendError(HttpError(404, absl::StrCat("There is nothing at ", head.path, ".")), reply);
    return false;
  }
  const bool is_get = absl::string_view(entry->method) == "GET";
  if (head.method != entry->method && !(is_get && head.method == "HEAD")) {
    const ApiError error = HttpError(
        405, absl::StrCat(head.path, " takes ", entry->method, ", not ", head.method, "."));
    HttpHeaders headers = CommonHeaders();
    headers.emplace_back("Allow", is_get ? "GET, HEAD" : "POST");
    reply->Send({.status = 405, .headers = std::move(headers), .body = ErrorJson(error)});
    return false;
  }
  if (!is_get && !IsJson(head.Header("content-type"))) {
    SendError(
        HttpError(415, absl::StrCat("The body's Content-Type is ", head.Header("content-type"),
                                    ", wanted application/json.")),
        reply);
    return false;
  }
  return true;
}

std::unique_ptr<HttpWork> HttpApi::Handle(HttpRequest request, HttpReply* reply) {
  if (!Admit(request, reply)) return nullptr;
  return (this->*Find(request.path)->route)(&request, reply);
}

std::unique_ptr<HttpWork> HttpApi::Health(HttpRequest*, HttpReply* reply) {
  if (edge_->backend->CanPlace()) {
    reply->Send({.headers = CommonHeaders(), .body = R"({"status":"ok"})"});
  } else {
    reply->Send(ErrorResponse(
        absl::UnavailableError("No request can be placed now: no instances are ready."),
        CommonHeaders()));
  }
  return nullptr;
}

std::unique_ptr<HttpWork> HttpApi::Live(HttpRequest*, HttpReply* reply) {
  reply->Send({.headers = CommonHeaders(), .body = R"({"status":"ok"})"});
  return nullptr;
}

std::unique_ptr<HttpWork> HttpApi::Models(HttpRequest* request, HttpReply* reply) {
  const ServedModel& model = *edge_->model;
  absl::string_view name = request->path;
  const bool one = absl::ConsumePrefix(&name, kModelPath);
  if (one && name != model.name) {
    reply->Send(ErrorResponse(UnknownModelError(name), CommonHeaders()));
    return nullptr;
  }
  if (!edge_->backend->CanPlace()) return Health(request, reply);
  const ModelCard card{.id = model.name,
                       .root = model.root,
                       .created = options_.created,
                       .max_model_len = model.context_tokens};
  reply->Send({.headers = CommonHeaders(), .body = one ? ModelJson(card) : ModelListJson(card)});
  return nullptr;
}

std::unique_ptr<HttpWork> HttpApi::Version(HttpRequest*, HttpReply* reply) {
  std::string body = "{\"version\":";
  AppendJsonString(options_.version, &body);
  reply->Send({.headers = CommonHeaders(), .body = body + "}"});
  return nullptr;
}

std::unique_ptr<HttpWork> HttpApi::Load(HttpRequest*, HttpReply* reply) {
  reply->Send({.headers = CommonHeaders(),
               .body = absl::StrCat("{\"server_load\":", edge_->calls_running, "}")});
  return nullptr;
}

std::unique_ptr<HttpWork> HttpApi::MetricsText(HttpRequest*, HttpReply* reply) {
  reply->Send({.content_type = Metrics::kContentType,
               .headers = CommonHeaders(),
               .body = metrics_->Text()});
  return nullptr;
}

std::unique_ptr<HttpWork> HttpApi::Generate(const char* api, ApiCall::Parse parse, int64_t bytes,
                                            HttpReply* reply) {
  auto answer =
      std::make_unique<HttpAnswer>(edge_, request_id_, absl::ToUnixSeconds(absl::Now()), reply);
  answer->Start({.api = api, .tenant = tenant_, .request_id = request_id_}, bytes,
                std::move(parse));
  return answer;
}

std::unique_ptr<HttpWork> HttpApi::Chat(HttpRequest* request, HttpReply* reply) {
  const int64_t bytes = static_cast<int64_t>(request->body.size());
  return Generate(
      "chat", [body = std::move(request->body)] { return ParseChatRequest(body); }, bytes, reply);
}

std::unique_ptr<HttpWork> HttpApi::Completions(HttpRequest* request, HttpReply* reply) {
  const int64_t bytes = static_cast<int64_t>(request->body.size());
  return Generate(
      "completions", [body = std::move(request->body)] { return ParseCompletionRequest(body); },
      bytes, reply);
}

std::unique_ptr<HttpWork> HttpApi::RunOnPool(int64_t bytes,
                                             std::function<absl::StatusOr<std::string>()> make_body,
                                             HttpReply* reply) {
  auto shared = std::make_shared<PoolWork::Shared>(PoolWork::Shared{reply, CommonHeaders()});
  const absl::Status queued =
      edge_->pool->Run(bytes, [shared, post = edge_->post, make_body = std::move(make_body)] {
        post([shared, body = make_body()]() mutable {
          if (shared->reply == nullptr) return;
          if (!body.ok()) return shared->reply->Send(ErrorResponse(body.status(), shared->headers));
          shared->reply->Send({.headers = std::move(shared->headers), .body = *std::move(body)});
        });
      });
  if (!queued.ok()) {
    reply->Send(ErrorResponse(queued, CommonHeaders()));
    return nullptr;
  }
  return std::make_unique<PoolWork>(std::move(shared));
}

std::unique_ptr<HttpWork> HttpApi::Tokenize(HttpRequest* request, HttpReply* reply) {
  const int64_t bytes = static_cast<int64_t>(request->body.size());
  return RunOnPool(
      bytes,
      [model = edge_->model, body = std::move(request->body)] {
        return TokenizeBodyToJson(*model, body);
      },
      reply);
}

std::unique_ptr<HttpWork> HttpApi::Detokenize(HttpRequest* request, HttpReply* reply) {
  const int64_t bytes = static_cast<int64_t>(request->body.size());
  return RunOnPool(
      bytes,
      [model = edge_->model, body = std::move(request->body)] {
        return DetokenizeBodyToJson(*model, body);
      },
      reply);
}

}  // namespace sluice::router
