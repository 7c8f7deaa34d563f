#include "services/router/http_answer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/router/api_error.h"

namespace sluice::router {
namespace {

constexpr size_t kIgnoredBytesMax = 1024;

// Names as a header may hold them: they come from the client.
std::string IgnoredHeader(const std::vector<std::string>& names) {
  std::string value;
  for (const std::string& name : names) {
    if (value.size() + name.size() > kIgnoredBytesMax) return value + ", ...";
    absl::StrAppend(&value, value.empty() ? "" : ", ", name);
  }
  for (char& c : value) {
    if (c < ' ' || c > '~') c = '?';
  }
  return value;
}

}  // namespace

HttpResponse ErrorResponse(const absl::Status& status, HttpHeaders headers) {
  const ApiError error = ToApiError(status);
  if (error.retry_after_s > 0) {
    headers.emplace_back("Retry-After", absl::StrCat(error.retry_after_s));
  }
  if (error.http_status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  return {.status = error.http_status, .headers = std::move(headers), .body = ErrorJson(error)};
}

HttpAnswer::HttpAnswer(Edge* edge, std::string request_id, int64_t created, HttpReply* reply)
    : edge_(edge), created_(created), reply_(reply) {
  headers_.emplace_back("X-Request-Id", std::move(request_id));
}

HttpAnswer::~HttpAnswer() {
  if (streaming_) edge_->metrics->sse_streams().Decrement();
  if (call_ != nullptr) call_->Abandon();
}

void HttpAnswer::Start(Caller caller, int64_t bytes, ApiCall::Parse parse) {
  call_ = ApiCall::Start(edge_, std::move(caller), bytes, std::move(parse), this);
}

void HttpAnswer::OnStarted(const PreparedRequest& prepared,
                           const std::vector<std::string>& ignored) {
  prepared_ = &prepared;
  const ApiRequest& request = prepared.request;
  headers_.front().second = request.request_id;
  if (!ignored.empty()) {
    headers_.emplace_back("X-Sluice-Ignored-Fields", IgnoredHeader(ignored));
  }
  head_ = {.chat = request.chat,
           .id = absl::StrCat(request.chat ? "chatcmpl-" : "cmpl-", NewRequestId(edge_)),
           .created = created_,
           .model = edge_->model->name,
           .fingerprint = edge_->model->fingerprint,
           .logprobs = request.sampling.num_logprobs >= 0,
           .token_ids = request.return_token_ids,
           .tokens_as_ids = request.tokens_as_ids,
           .tokenizer = edge_->model->tokenizer.get()};
  const size_t count = prepared.prompts.size() * request.n;
  if (request.stream) {
    writer_.emplace(head_);
    begun_.resize(count);
  } else {
    choices_.resize(count);
  }
}

const PromptEcho* HttpAnswer::EchoOf(uint32_t index) const {
  const size_t prompt = index / prepared_->request.n;
  return prompt < prepared_->echoes.size() ? &prepared_->echoes[prompt] : nullptr;
}

void HttpAnswer::BeginStream() {
  if (streaming_) return;
  streaming_ = true;
  edge_->metrics->sse_streams().Increment();
  reply_->BeginStream(headers_);
}

void HttpAnswer::OnDelta(const ChoiceDelta& delta, const ApiUsage* usage) {
  if (!writer_.has_value()) return MergeDelta(delta, &choices_[delta.index]);
  // Only now: until there is a token, an error has a status of its own.
  BeginStream();
  std::string events;
  if (!begun_[delta.index]) {
    begun_[delta.index] = true;
    writer_->Begin(delta.index, EchoOf(delta.index), &events);
  }
  writer_->Delta(delta, usage, &events);
  reply_->Write(events);
}

void HttpAnswer::OnDone(const ApiUsage& usage, const Timings&) {
  if (!writer_.has_value()) {
    return reply_->Send(
        {.headers = std::move(headers_),
         .body = ResponseJson(head_, choices_, prepared_->echoes, prepared_->request.n, usage)});
  }
  std::string events;
  if (prepared_->request.include_usage) writer_->Usage(usage, &events);
  ChunkWriter::Done(&events);
  reply_->EndStream(events);
}

void HttpAnswer::OnError(const absl::Status& status) {
  if (!streaming_) return reply_->Send(ErrorResponse(status, std::move(headers_)));
  std::string events;
  ChunkWriter::Error(ErrorJson(ToApiError(status)), &events);
  ChunkWriter::Done(&events);
  reply_->EndStream(events);
}

}  // namespace sluice::router
