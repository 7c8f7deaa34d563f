#include "services/router/api_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/base/log.h"
#include "services/router/api_error.h"

namespace sluice::router {

std::string NewRequestId(Edge* edge) {
  return absl::StrFormat("%016x%016x", absl::Uniform<uint64_t>(edge->random),
                         absl::Uniform<uint64_t>(edge->random));
}

bool IsRequestId(absl::string_view id) {
  return !id.empty() && id.size() <= kRequestIdBytesMax &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c <= '~'; });
}

ApiCall::ApiCall(Edge* edge, Caller caller, ApiCallSink* sink)
    : edge_(edge), caller_(std::move(caller)), sink_(sink), start_(edge->backend->Now()) {
  ++edge_->calls_running;
}

ApiCall::~ApiCall() { --edge_->calls_running; }

std::shared_ptr<ApiCall> ApiCall::Start(Edge* edge, Caller caller, int64_t bytes, Parse parse,
                                        ApiCallSink* sink) {
  const std::shared_ptr<ApiCall> call(new ApiCall(edge, std::move(caller), sink));
  PreparationContext context{.kv_layout_hash = edge->backend->KvLayoutHash(),
                             .tenant = call->caller_.tenant,
                             .random_seed = absl::Uniform<uint64_t>(edge->random)};
  // Captured as a value that can be moved on: a copy of a const one could not.
  auto work = [call = std::shared_ptr<ApiCall>(call), post = edge->post, model = edge->model,
               parse = std::move(parse), context = std::move(context)]() mutable {
    auto result = std::make_shared<Prepared>();
    absl::StatusOr<ParsedRequest> parsed = parse();
    if (parsed.ok()) {
      result->ignored = std::move(parsed->ignored);
      auto prepared = Prepare(*model, std::move(parsed->request), context);
      if (prepared.ok()) result->request = *std::move(prepared);
      result->status = std::move(prepared).status();
    } else {
      result->status = std::move(parsed).status();
    }
    // The last reference must go on the loop.
    post([call = std::move(call), result = std::move(result)] {
      call->OnPrepared(std::move(*result));
    });
  };
  const absl::Status queued = edge->pool->Run(bytes, std::move(work));
  if (!queued.ok()) {
    edge->metrics->OnRejected("tokenizer_queue_full");
    edge->post([call, queued] { call->OnError(queued); });
  }
  return call;
}

void ApiCall::OnPrepared(Prepared prepared) {
  if (sink_ == nullptr) return;
  edge_->metrics->tokenize_seconds().Observe(absl::ToDoubleSeconds(edge_->backend->Now() - start_));
  std::string& id = prepared.request.request.request_id;
  if (prepared.status.ok() && id.empty()) id = caller_.request_id;
  if (prepared.status.ok() && !IsRequestId(id)) {
    prepared.status = FieldError(
        "request_id", "request_id may only hold printable ASCII characters, and no blanks");
  }
  const int64_t answers =
      static_cast<int64_t>(prepared.request.prompts.size()) * prepared.request.request.n;
  if (prepared.status.ok() && answers > edge_->answers_max) {
    prepared.status = FieldError(
        "n", absl::StrCat("n is ", prepared.request.request.n, " for ",
                          prepared.request.prompts.size(), " prompts: ", answers,
                          " answers, and this server holds at most ", edge_->answers_max));
  }
  if (!prepared.status.ok()) return OnError(prepared.status);
  caller_.request_id = id;
  const absl::Time deadline = std::min(caller_.deadline, start_ + edge_->request_timeout);
  auto generation = GenerationCall::Start(std::move(prepared.request), *edge_->model->tokenizer,
                                          edge_->backend, this, deadline);
  if (!generation.ok()) return OnError(generation.status());
  generation_ = *std::move(generation);
  sink_->OnStarted(generation_->prepared(), prepared.ignored);
}

void ApiCall::OnDelta(const ChoiceDelta& delta) {
  if (sink_ == nullptr) return;
  if (delta.end.has_value()) edge_->metrics->OnAnswer(delta.end->length);
  if (!generation_->prepared().request.continuous_usage) return sink_->OnDelta(delta, nullptr);
  const ApiUsage usage = generation_->usage();
  sink_->OnDelta(delta, &usage);
}

void ApiCall::OnDone(const Timings& timings) {
  if (sink_ == nullptr) return;
  const ApiUsage usage = generation_->usage();
  End(absl::StatusCode::kOk);
  std::exchange(sink_, nullptr)->OnDone(usage, timings);
}

void ApiCall::OnError(const absl::Status& status) {
  if (sink_ == nullptr) return;
  End(status.code());
  std::exchange(sink_, nullptr)->OnError(status);
}

void ApiCall::Abandon() {
  if (sink_ != nullptr) {
    sink_ = nullptr;
    End(absl::StatusCode::kCancelled);
  }
  generation_.reset();
}

void ApiCall::End(absl::StatusCode code) {
  edge_->metrics->OnCallEnd(caller_.api, code);
  if (LogEnabled(LogLevel::kDebug)) {
    LogDebug("call ended", {{kRequestIdField, caller_.request_id},
                            {"api", caller_.api},
                            {"code", absl::StatusCodeToString(code)},
                            {"took", edge_->backend->Now() - start_}});
  }
}

}  // namespace sluice::router
