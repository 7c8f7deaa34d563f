// One chat or completion over HTTP: the call's deltas as server-sent events, or as one response.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "services/router/api_call.h"
#include "services/router/http_message.h"
#include "services/router/openai_response.h"

namespace sluice::router {

// Threads: the loop's.
class HttpAnswer final : public HttpWork, public ApiCallSink {
 public:
  // The reply gets the whole answer, or the error.
  HttpAnswer(Edge* edge, std::string request_id, int64_t created, HttpReply* reply);
  ~HttpAnswer() override;

  void Start(Caller caller, int64_t bytes, ApiCall::Parse parse);

  void OnStarted(const PreparedRequest& prepared, const std::vector<std::string>& ignored) override;
  void OnDelta(const ChoiceDelta& delta, const ApiUsage* usage) override;
  void OnDone(const ApiUsage& usage, const Timings& timings) override;
  void OnError(const absl::Status& status) override;

 private:
  void BeginStream();
  const PromptEcho* EchoOf(uint32_t index) const;

  Edge* const edge_;
  const int64_t created_;
  HttpReply* const reply_;
  HttpHeaders headers_;
  std::shared_ptr<ApiCall> call_;

  // From OnStarted on. The prepared request belongs to the call.
  const PreparedRequest* prepared_ = nullptr;
  ResponseHead head_;
  std::vector<ChoiceDelta> choices_;   // whole answers, when not streamed
  std::optional<ChunkWriter> writer_;  // when streamed
  std::vector<bool> begun_;            // of which answers a first chunk was sent
  bool streaming_ = false;             // the stream was begun
};

// Response headers for an error, such as Retry-After.
HttpResponse ErrorResponse(const absl::Status& status, HttpHeaders headers);

}  // namespace sluice::router
