// One streaming call of Generation. Only grpc_*.cc include this: it brings gRPC's headers.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "services/router/api_call.h"
#include "sluice/v1/generation.pb.h"

namespace sluice::router {

// gRPC's calls post to the loop, where everything happens. It holds itself until gRPC is done.
class GenerationReactor final : public grpc::ServerWriteReactor<v1::GenerateChunk>,
                                public ApiCallSink,
                                public std::enable_shared_from_this<GenerationReactor> {
 public:
  // The call that has come in; on a gRPC thread. Gives the reactor that gRPC is to be told of.
  static GenerationReactor* Start(Edge* edge, grpc::CallbackServerContext* context, Caller caller,
                                  int64_t bytes, ApiCall::Parse parse);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void OnStarted(const PreparedRequest& prepared, const std::vector<std::string>& ignored) override;
  void OnDelta(const ChoiceDelta& delta, const ApiUsage* usage) override;
  void OnDone(const ApiUsage& usage, const Timings& timings) override;
  void OnError(const absl::Status& status) override;

 private:
  GenerationReactor(Edge* edge, grpc::CallbackServerContext* context)
      : edge_(edge), context_(context) {}

  // The prompt's text, before the first of an answer with echo.
  void Begin(uint32_t index);
  void Enqueue(v1::GenerateChunk chunk);
  void WriteNext();
  void Abandon(absl::Status status);

  Edge* const edge_;
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<GenerationReactor> self_;  // until gRPC is done

  // On the loop from here on.
  std::shared_ptr<ApiCall> call_;
  const PreparedRequest* prepared_ = nullptr;  // from OnStarted on; the call's
  std::vector<bool> begun_;  // of which answers with echo the prompt's text was sent
  size_t num_open_ = 0;      // answers that have not ended
  v1::GenerateChunk last_;   // of the last answer: waits for the usage
  std::deque<v1::GenerateChunk> waiting_;
  size_t waiting_bytes_ = 0;
  v1::GenerateChunk current_;  // being written
  bool writing_ = false;
  bool ended_ = false;     // `status_` is to be sent when nothing waits
  bool finished_ = false;  // it was
  absl::Status status_;
};

}  // namespace sluice::router
