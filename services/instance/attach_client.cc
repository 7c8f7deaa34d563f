#include "services/instance/attach_client.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "services/base/log.h"
#include "services/rpc/channel.h"
#include "services/rpc/status.h"
#include "sluice/v1/control.grpc.pb.h"

namespace sluice::instance {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kEndOfStreams{10};  // between complaints

}  // namespace

struct AttachClient::Impl {
  class Stream;
  // One router: its channel, and the stream to it, if there is one.
  struct Peer {
    std::string address;
    std::unique_ptr<v1::Attach::Stub> stub;  // holds the channel
    std::shared_ptr<Stream> stream;          // from dialling to OnDone
    Clock::time_point dial_at{};             // when there is none
    Clock::time_point welcome_by{};          // while it is not attached
    absl::Duration backoff;
    std::string last_error;  // logged once until it changes
  };

  Impl(AttachOptions options, RouterListener* listener);
  void Run();
  void StartStream(Peer* peer);
  void Destroy(Stream* stream);
  void OnAttached(Stream* stream, const std::string& router);
  void OnDone(Stream* stream, const grpc::Status& status);

  const AttachOptions options;
  RouterListener* const listener;
  mutable std::mutex mutex;  // guards all below; never held while the listener is called
  std::condition_variable changed;
  std::vector<Peer> peers;
  std::map<RouterId, std::shared_ptr<Stream>> attached;
  int live_streams = 0;  // objects, whoever holds them
  RouterId next_router = 1;
  bool closing = false;
  std::mt19937_64 random;
  std::thread thread;
};

// Lives until gRPC has called OnDone, which is the last call, and whoever sends along it has done
// so. Its context holds the channel.
class AttachClient::Impl::Stream final
    : public grpc::ClientBidiReactor<v1::WorkerMessage, v1::RouterMessage> {
 public:
  Stream(Impl* impl, size_t peer, RouterId id) : impl(impl), peer(peer), id(id) {}

  void Start(v1::Attach::Stub* stub, const v1::Hello& hello) {
    *out_.mutable_hello() = hello;
    stub->async()->Attach(&context_, this);
    AddHold();  // writes are started from outside; given up when reads end
    StartWrite(&out_);
    StartRead(&in_);
    StartCall();
  }

  void Send(v1::WorkerMessage message) {
    const std::lock_guard lock(mutex_);
    if (ending_) return;
    const size_t bytes = message.ByteSizeLong();
    if (queue_.size() >= impl->options.queue_messages_max ||
        queued_bytes_ + bytes > impl->options.queue_bytes_max) {
      LogWarn("router does not keep up, breaking its stream",
              {{"router", id}, {"messages", queue_.size()}, {"bytes", queued_bytes_}});
      ending_ = true;
      context_.TryCancel();
      return;
    }
    queued_bytes_ += bytes;
    queue_.emplace_back(std::move(message), bytes);
    WriteNext();
  }

  // Half-closes once everything queued is out.
  void Finish() {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    WriteNext();
  }
  void Break() { context_.TryCancel(); }

  Impl* const impl;
  const size_t peer;
  const RouterId id;
  bool attached = false;  // guarded by impl->mutex

 private:
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    broken_ = broken_ || !ok;
    WriteNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return EndReads();
    if (!Take()) {
      context_.TryCancel();
      return EndReads();
    }
    in_.Clear();
    StartRead(&in_);
  }

  // What was read; false: the stream is to end.
  bool Take() {
    if (welcomed_) return impl->listener->OnMessage(id, std::move(in_));
    if (!in_.has_welcome()) return false;
    welcomed_ = true;
    impl->OnAttached(this, in_.welcome().router());
    return true;
  }

  // No write is started after this, so that gRPC may end the call.
  void EndReads() {
    {
      const std::lock_guard lock(mutex_);
      broken_ = true;
    }
    RemoveHold();
  }

  void OnDone(const grpc::Status& status) override { impl->OnDone(this, status); }

  // REQUIRES mutex_.
  void WriteNext() {
    if (writing_ || broken_ || half_closed_) return;
    if (queue_.empty()) {
      if (!ending_) return;
      half_closed_ = true;
      StartWritesDone();
      return;
    }
    out_ = std::move(queue_.front().first);
    queued_bytes_ -= queue_.front().second;
    queue_.pop_front();
    writing_ = true;
    StartWrite(&out_);
  }

  grpc::ClientContext context_;
  v1::RouterMessage in_;
  bool welcomed_ = false;
  std::mutex mutex_;  // guards all below
  v1::WorkerMessage out_;
  std::deque<std::pair<v1::WorkerMessage, size_t>> queue_;  // with its bytes
  size_t queued_bytes_ = 0;
  bool writing_ = true;  // the Hello
  bool broken_ = false;
  bool ending_ = false;
  bool half_closed_ = false;
};

AttachClient::Impl::Impl(AttachOptions options_in, RouterListener* listener)
    : options(std::move(options_in)), listener(listener), random(options.random_seed) {
  for (const std::string& address : options.routers) {
    peers.push_back({.address = address,
                     .stub = v1::Attach::NewStub(rpc::MakeChannel(address)),
                     .backoff = options.backoff_min});
  }
}

// Dials whoever has no stream and whose time has come.
void AttachClient::Impl::Run() {
  std::unique_lock lock(mutex);
  while (!closing) {
    const Clock::time_point now = Clock::now();
    Clock::time_point next = now + std::chrono::hours(1);
    for (Peer& peer : peers) {
      if (peer.stream == nullptr && peer.dial_at <= now) StartStream(&peer);
      if (peer.stream == nullptr) {
        next = std::min(next, peer.dial_at);
      } else if (!peer.stream->attached) {
        if (peer.welcome_by <= now) peer.stream->Break();  // OnDone follows, and wakes us
        next = std::min(next, std::max(peer.welcome_by, now + std::chrono::milliseconds(100)));
      }
    }
    changed.wait_until(lock, next);
  }
}

// REQUIRES mutex.
void AttachClient::Impl::StartStream(Peer* peer) {
  ++live_streams;
  peer->stream = std::shared_ptr<Stream>(new Stream(this, peer - peers.data(), next_router++),
                                         [this](Stream* stream) { Destroy(stream); });
  peer->welcome_by = Clock::now() + absl::ToChronoNanoseconds(options.welcome_timeout);
  peer->stream->Start(peer->stub.get(), options.hello);
}

// Without the mutex held. Counted only once it is gone: a stream that outlived the peers would take
// the last hold of its channel with it, on a thread of gRPC's, which must not destroy channels: the
// last one's end joins that very thread.
void AttachClient::Impl::Destroy(Stream* stream) {
  delete stream;
  const std::lock_guard lock(mutex);
  --live_streams;
  changed.notify_all();  // under the lock: whoever waits may destroy this object next
}

void AttachClient::Impl::OnAttached(Stream* stream, const std::string& router) {
  std::string address;
  {
    const std::lock_guard lock(mutex);
    Peer& peer = peers[stream->peer];
    peer.backoff = options.backoff_min;
    peer.last_error.clear();
    address = peer.address;
    stream->attached = true;
    attached.emplace(stream->id, peer.stream);
  }
  LogInfo("attached", {{"router", router}, {"address", address}});
  listener->OnAttached(stream->id);
}

void AttachClient::Impl::OnDone(Stream* stream, const grpc::Status& status) {
  const absl::Status why =
      status.ok() ? absl::UnavailableError("the router ended the stream") : rpc::FromGrpc(status);
  const RouterId id = stream->id;
  bool was_attached = false;
  bool tell = false;
  std::string address;
  {
    const std::lock_guard lock(mutex);
    Peer& peer = peers[stream->peer];
    was_attached = stream->attached;
    attached.erase(id);
    const double share = std::uniform_real_distribution<double>(0.5, 1.0)(random);
    peer.dial_at = Clock::now() + absl::ToChronoNanoseconds(peer.backoff * share);
    peer.backoff = std::min(peer.backoff * 2, options.backoff_max);
    const std::string error = why.ToString();
    tell = !closing && (was_attached || error != peer.last_error);
    peer.last_error = error;
    address = peer.address;
  }
  if (tell) {
    LogWarn(was_attached ? "router lost" : "cannot attach", {{"address", address}, {"why", why}});
  }
  if (was_attached) listener->OnGone(id);
  std::shared_ptr<Stream> last;
  {
    const std::lock_guard lock(mutex);
    last = std::move(peers[stream->peer].stream);
    changed.notify_all();
  }
  last.reset();  // after this nothing of this object may be used
}

AttachClient::AttachClient(AttachOptions options, RouterListener* listener)
    : impl_(std::make_unique<Impl>(std::move(options), listener)) {
  impl_->thread = std::thread([impl = impl_.get()] { impl->Run(); });
}

AttachClient::~AttachClient() { Close(absl::ZeroDuration()); }

void AttachClient::Send(RouterId router, v1::WorkerMessage message) {
  std::shared_ptr<Impl::Stream> stream;
  {
    const std::lock_guard lock(impl_->mutex);
    const auto it = impl_->attached.find(router);
    if (it == impl_->attached.end()) return;
    stream = it->second;
  }
  stream->Send(std::move(message));
}

void AttachClient::SendToAll(const v1::WorkerMessage& message) {
  std::vector<std::shared_ptr<Impl::Stream>> streams;
  {
    const std::lock_guard lock(impl_->mutex);
    for (const auto& [id, stream] : impl_->attached) streams.push_back(stream);
  }
  for (const auto& stream : streams) stream->Send(message);
}

void AttachClient::Close(absl::Duration grace) {
  std::unique_lock lock(impl_->mutex);
  impl_->closing = true;
  impl_->changed.notify_all();
  const auto ended = [&] { return impl_->live_streams == 0; };
  for (const Impl::Peer& peer : impl_->peers) {
    if (peer.stream != nullptr) peer.stream->Finish();
  }
  impl_->changed.wait_for(lock, absl::ToChronoNanoseconds(grace), ended);
  for (const Impl::Peer& peer : impl_->peers) {
    if (peer.stream != nullptr) peer.stream->Break();
  }
  // Soon: gRPC answers every cancelled call. There is no going on without: it calls into this
  // object.
  while (!impl_->changed.wait_for(lock, kEndOfStreams, ended)) {
    LogError("streams to routers do not end", {{"streams", impl_->live_streams}});
  }
  lock.unlock();
  if (impl_->thread.joinable()) impl_->thread.join();
}

int64_t AttachClient::num_attached() const {
  const std::lock_guard lock(impl_->mutex);
  return static_cast<int64_t>(impl_->attached.size());
}

}  // namespace sluice::instance
