// One call of a client, from its bytes to its last token, for every API alike: parsed and prepared
// on the pool, then run by the backend.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/random/random.h"
#include "absl/time/time.h"
#include "services/router/generation_call.h"
#include "services/router/openai_request.h"
#include "services/router/preparation.h"
#include "services/router/preparation_pool.h"
#include "services/router/router_metrics.h"
#include "services/router/served_model.h"
#include "services/router/token_backend.h"

namespace sluice::router {

// What all calls share; outlives them. Used on the loop, but for the model and `post`.
struct Edge {
  const ServedModel* model = nullptr;
  TokenBackend* backend = nullptr;
  PreparationPool* pool = nullptr;
  RouterMetrics* metrics = nullptr;
  std::function<void(std::function<void()>)> post;  // runs it on the loop; from any thread
  absl::Duration request_timeout = absl::InfiniteDuration();
  int64_t answers_max = INT64_MAX;  // that the backend could ever hold at once
  absl::BitGen random;
  int64_t calls_running = 0;
};

// 32 random hexadecimal digits.
std::string NewRequestId(Edge* edge);
// Whether a client's own id may stand in headers and logs: 1 to 256 printable ASCII characters.
bool IsRequestId(absl::string_view id);

struct Caller {
  const char* api = "";  // chat, completions, grpc_chat, grpc_generate: for metrics
  std::string tenant;
  std::string request_id;  // where the request has none itself
  absl::Time deadline = absl::InfiniteFuture();
};

// Calls come on the loop, in the order they stand here; after OnDone or OnError none.
class ApiCallSink {
 public:
  virtual ~ApiCallSink() = default;
  // It runs: what was asked for, and what was ignored.
  virtual void OnStarted(const PreparedRequest& prepared,
                         const std::vector<std::string>& ignored) = 0;
  // `usage` so far, when the request asks for it with each delta; else null.
  virtual void OnDelta(const ChoiceDelta& delta, const ApiUsage* usage) = 0;
  virtual void OnDone(const ApiUsage& usage, const Timings& timings) = 0;
  // Also before OnStarted.
  virtual void OnError(const absl::Status& status) = 0;
};

class ApiCall final : public CallListener, public std::enable_shared_from_this<ApiCall> {
 public:
  using Parse = std::function<absl::StatusOr<ParsedRequest>()>;

  // `parse` runs on the pool and `bytes` says how long it may take. The sink must live until its
  // last call, or Abandon(). It is not called before this returns.
  static std::shared_ptr<ApiCall> Start(Edge* edge, Caller caller, int64_t bytes, Parse parse,
                                        ApiCallSink* sink);
  ~ApiCall() override;

  // Nobody waits for it any more: ends it. Not from within a call of the sink.
  void Abandon();

 private:
  struct Prepared {
    absl::Status status;
    PreparedRequest request;
    std::vector<std::string> ignored;
  };

  ApiCall(Edge* edge, Caller caller, ApiCallSink* sink);
  void OnPrepared(Prepared prepared);
  void OnDelta(const ChoiceDelta& delta) override;
  void OnDone(const Timings& timings) override;
  void OnError(const absl::Status& status) override;
  void End(absl::StatusCode code);

  Edge* const edge_;
  Caller caller_;      // from OnPrepared on with the request's own id, if it has one
  ApiCallSink* sink_;  // null: it is over
  const absl::Time start_;
  std::unique_ptr<GenerationCall> generation_;
};

}  // namespace sluice::router
