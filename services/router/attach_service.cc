#include "services/router/attach_service.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "services/base/log.h"
#include "services/rpc/status.h"
#include "sluice/v1/control.grpc.pb.h"

namespace sluice::router {

class AttachService::Impl final : public v1::Attach::CallbackService {
 public:
  class Stream;

  Impl(Post post, const Clock* clock) : post_(std::move(post)), clock_(clock) {}

  grpc::ServerBidiReactor<v1::WorkerMessage, v1::RouterMessage>* Attach(
      grpc::CallbackServerContext* context) override;

  void Send(WorkerId worker, v1::RouterMessage message);
  void End(WorkerId worker, const absl::Status& why);
  void Close();

  // On gRPC's threads.
  void Deliver(std::shared_ptr<Stream> stream, v1::WorkerMessage message);
  void OnDone(WorkerId id);

  RouterCore* core = nullptr;

 private:
  void Greet(const std::shared_ptr<Stream>& stream, const v1::Hello& hello);

  const Post post_;
  const Clock* const clock_;
  std::atomic<WorkerId> next_id_ = 1;
  // The core's thread alone.
  absl::flat_hash_map<WorkerId, std::shared_ptr<Stream>> streams_;
  bool closed_ = false;
};

// Lives until gRPC has called OnDone and nobody refers to it any more.
class AttachService::Impl::Stream final
    : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::RouterMessage> {
 public:
  Stream(Impl* impl, WorkerId id, grpc::CallbackServerContext* context)
      : impl_(impl), id_(id), peer_(context->peer()), context_(context) {}

  void Start(std::shared_ptr<Stream> self) {
    self_ = std::move(self);
    StartRead(&in_);
  }

  void Send(v1::RouterMessage message) {
    const int64_t bytes = static_cast<int64_t>(message.ByteSizeLong());
    const std::lock_guard lock(mutex_);
    if (finishing_) return;
    if (static_cast<int64_t>(queue_.size()) >= kQueuedMessagesMax ||
        queued_bytes_ + bytes > kQueuedBytesMax) {
      LogWarn("worker does not keep up, breaking its stream",
              {{"peer", peer_}, {"messages", queue_.size()}, {"bytes", queued_bytes_}});
      context_->TryCancel();
      FinishLocked(
          grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the worker does not keep up"));
      return;
    }
    queued_bytes_ += bytes;
    queue_.emplace_back(std::move(message), bytes);
    WriteNext();
  }

  // What is queued is not sent any more.
  void Finish(const grpc::Status& status) {
    const std::lock_guard lock(mutex_);
    FinishLocked(status);
  }

  // The core has dealt with a message.
  void Delivered() {
    const std::lock_guard lock(mutex_);
    --ahead_;
    if (!read_waits_ || finishing_) return;
    read_waits_ = false;
    StartRead(&in_);
  }

  WorkerId id() const { return id_; }
  const std::string& peer() const { return peer_; }
  bool greeted = false;  // the core's thread alone

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    impl_->Deliver(self_, std::move(in_));
    const std::lock_guard lock(mutex_);
    if (finishing_) return;
    in_.Clear();
    read_waits_ = ++ahead_ >= kMessagesAheadMax;
    if (!read_waits_) StartRead(&in_);
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) FinishLocked(grpc::Status::OK);
    if (finish_waits_) return GrpcFinish();
    WriteNext();
  }

  // The connection is lost, also while no read is under way.
  void OnCancel() override { Finish(grpc::Status::CANCELLED); }

  void OnDone() override {
    impl_->OnDone(id_);
    self_.reset();
  }

  // REQUIRES mutex_.
  void WriteNext() {
    if (writing_ || finishing_ || queue_.empty()) return;
    out_ = std::move(queue_.front().first);
    queued_bytes_ -= queue_.front().second;
    queue_.pop_front();
    writing_ = true;
    StartWrite(&out_);
  }

  // REQUIRES mutex_.
  void FinishLocked(const grpc::Status& status) {
    if (finishing_) return;
    finishing_ = true;
    status_ = status;
    queue_.clear();
    finish_waits_ = true;
    if (!writing_) GrpcFinish();
  }

  // REQUIRES mutex_, no write under way.
  void GrpcFinish() {
    finish_waits_ = false;
    ServerBidiReactor::Finish(status_);
  }

  Impl* const impl_;
  const WorkerId id_;
  const std::string peer_;
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<Stream> self_;  // until OnDone
  v1::WorkerMessage in_;
  std::mutex mutex_;  // guards all below
  int ahead_ = 0;     // messages that the core has not dealt with yet
  bool read_waits_ = false;
  v1::RouterMessage out_;
  std::deque<std::pair<v1::RouterMessage, int64_t>> queue_;  // with its bytes
  int64_t queued_bytes_ = 0;
  bool writing_ = false;
  bool finishing_ = false;
  bool finish_waits_ = false;  // for the write under way
  grpc::Status status_;
};

grpc::ServerBidiReactor<v1::WorkerMessage, v1::RouterMessage>* AttachService::Impl::Attach(
    grpc::CallbackServerContext* context) {
  auto stream = std::make_shared<Stream>(this, next_id_++, context);
  Stream* const reactor = stream.get();
  reactor->Start(std::move(stream));
  return reactor;
}

void AttachService::Impl::Deliver(std::shared_ptr<Stream> stream, v1::WorkerMessage message) {
  // std::function copies; the message is too large for that.
  auto shared = std::make_shared<v1::WorkerMessage>(std::move(message));
  post_([this, stream = std::move(stream), shared] {
    if (stream->greeted) {
      core->OnWorkerMessage(stream->id(), *shared, clock_->Now());
    } else {
      Greet(stream, shared->hello());  // an empty one is refused
    }
    stream->Delivered();
  });
}

void AttachService::Impl::Greet(const std::shared_ptr<Stream>& stream, const v1::Hello& hello) {
  if (closed_) return stream->Finish({grpc::StatusCode::UNAVAILABLE, "this router is leaving"});
  streams_.emplace(stream->id(), stream);  // the core answers at once
  const absl::Status status = core->OnWorkerHello(stream->id(), hello, clock_->Now());
  if (!status.ok()) {
    streams_.erase(stream->id());
    LogWarn("worker refused",
            {{"worker", hello.instance()}, {"peer", stream->peer()}, {"why", status}});
    return stream->Finish(rpc::ToGrpc(status));
  }
  stream->greeted = true;
  LogInfo("worker attached",
          {{"worker", hello.instance()},
           {"role", absl::AsciiStrToLower(v1::Role_Name(hello.role()).substr(sizeof("ROLE")))},
           {"peer", stream->peer()},
           {"software", hello.software()}});
}

void AttachService::Impl::OnDone(WorkerId id) {
  post_([this, id] {
    const auto it = streams_.find(id);
    if (it == streams_.end()) return;
    streams_.erase(it);
    core->OnWorkerGone(id, clock_->Now());
  });
}

void AttachService::Impl::Send(WorkerId worker, v1::RouterMessage message) {
  const auto it = streams_.find(worker);
  if (it != streams_.end()) it->second->Send(std::move(message));
}

void AttachService::Impl::End(WorkerId worker, const absl::Status& why) {
  const auto it = streams_.find(worker);
  if (it == streams_.end()) return;
  it->second->Finish(rpc::ToGrpc(why));
  streams_.erase(it);
}

void AttachService::Impl::Close() {
  closed_ = true;
  for (const auto& [id, stream] : streams_) {
    stream->Finish({grpc::StatusCode::UNAVAILABLE, "this router is leaving"});
  }
}

AttachService::AttachService(Post post, const Clock* clock)
    : impl_(std::make_unique<Impl>(std::move(post), clock)) {}
AttachService::~AttachService() = default;
void AttachService::SetCore(RouterCore* core) { impl_->core = core; }
grpc::Service* AttachService::service() { return impl_.get(); }
void AttachService::Send(WorkerId worker, v1::RouterMessage message) {
  impl_->Send(worker, std::move(message));
}
void AttachService::End(WorkerId worker, const absl::Status& why) { impl_->End(worker, why); }
void AttachService::Close() { impl_->Close(); }

}  // namespace sluice::router
