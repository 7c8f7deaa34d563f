#include "services/router/grpc_generation.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "services/router/api_error.h"
#include "services/router/grpc_status.h"
#include "services/router/proto_request.h"

namespace sluice::router {
namespace {

constexpr size_t kWaitingBytesMax = 1 << 20;

}  // namespace

GenerationReactor* GenerationReactor::Start(Edge* edge, grpc::CallbackServerContext* context,
                                            Caller caller, int64_t bytes, ApiCall::Parse parse) {
  const std::shared_ptr<GenerationReactor> reactor(new GenerationReactor(edge, context));
  reactor->self_ = reactor;
  edge->post([reactor, caller = std::move(caller), bytes, parse = std::move(parse)]() mutable {
    if (reactor->finished_) return;  // cancelled already
    if (caller.request_id.empty()) caller.request_id = NewRequestId(reactor->edge_);
    reactor->call_ =
        ApiCall::Start(reactor->edge_, std::move(caller), bytes, std::move(parse), reactor.get());
  });
  return reactor.get();
}

void GenerationReactor::OnWriteDone(bool ok) {
  edge_->post([self = self_, ok] {
    self->writing_ = false;
    if (!ok) return self->Abandon(absl::CancelledError("the client has gone"));
    self->WriteNext();
  });
}

void GenerationReactor::OnCancel() {
  edge_->post([self = self_] { self->Abandon(absl::CancelledError("the client has gone")); });
}

void GenerationReactor::OnDone() {
  // The last reference goes on the loop.
  edge_->post([self = std::move(self_)] {
    if (self->call_ != nullptr) self->call_->Abandon();
  });
}

void GenerationReactor::OnStarted(const PreparedRequest& prepared,
                                  const std::vector<std::string>&) {
  prepared_ = &prepared;
  begun_.resize(prepared.prompts.size() * prepared.request.n);
  num_open_ = begun_.size();
  context_->AddInitialMetadata("x-request-id", prepared.request.request_id);
}

void GenerationReactor::Begin(uint32_t index) {
  if (!prepared_->request.echo || begun_[index]) return;
  begun_[index] = true;
  v1::GenerateChunk chunk;
  chunk.set_index(index);
  chunk.set_text_delta(prepared_->echoes[index / prepared_->request.n].text);
  Enqueue(std::move(chunk));
}

void GenerationReactor::OnDelta(const ChoiceDelta& delta, const ApiUsage* usage) {
  Begin(delta.index);
  v1::GenerateChunk chunk = ToProto(delta);
  if (usage != nullptr) *chunk.mutable_usage() = ToProto(*usage);
  if (delta.end.has_value() && --num_open_ == 0) {
    last_ = std::move(chunk);
  } else {
    Enqueue(std::move(chunk));
  }
}

void GenerationReactor::OnDone(const ApiUsage& usage, const Timings& timings) {
  *last_.mutable_usage() = ToProto(usage);
  *last_.mutable_timings() = ToProto(timings);
  ended_ = true;
  Enqueue(std::move(last_));
}

void GenerationReactor::OnError(const absl::Status& status) {
  ended_ = true;
  status_ = status;
  WriteNext();
}

void GenerationReactor::Enqueue(v1::GenerateChunk chunk) {
  if (finished_) return;
  waiting_bytes_ += chunk.ByteSizeLong();
  waiting_.push_back(std::move(chunk));
  if (waiting_bytes_ > kWaitingBytesMax) {
    // Not at once: this is a call of the ApiCall.
    return edge_->post([self = shared_from_this()] {
      self->Abandon(absl::ResourceExhaustedError("the client does not read its stream"));
    });
  }
  WriteNext();
}

void GenerationReactor::WriteNext() {
  if (writing_ || finished_) return;
  if (!waiting_.empty()) {
    current_ = std::move(waiting_.front());
    waiting_.pop_front();
    waiting_bytes_ -= current_.ByteSizeLong();
    writing_ = true;
    StartWrite(&current_);
  } else if (ended_) {
    finished_ = true;
    Finish(ToGrpcStatus(status_));
  }
}

void GenerationReactor::Abandon(absl::Status status) {
  if (call_ != nullptr) call_->Abandon();
  if (finished_) return;
  finished_ = true;
  Finish(ToGrpcStatus(status));
}

}  // namespace sluice::router
