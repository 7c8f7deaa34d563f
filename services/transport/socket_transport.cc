#include "services/transport/socket_transport.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/transport/lease_table.h"
#include "services/transport/poller.h"
#include "services/transport/socket_address.h"
#include "services/transport/socket_receiver.h"
#include "services/transport/socket_sender.h"
#include "services/transport/transfer_table.h"
#include "services/transport/watched_mover.h"

namespace sluice::transport {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(20);  // of deadlines and silence
constexpr absl::Duration kIdle = absl::Minutes(1);
constexpr absl::Duration kSpin = absl::Microseconds(20);  // before sleeping
// Of pages that a PageMover reads: what a receiver's GPU reads while messages go to and fro.
constexpr TransferLimits kDeviceLimits{.outstanding_bytes = 256 << 20};

absl::Time SteadyNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

class SocketTransport final : public KvTransport, KvSender, KvReceiver {
 public:
  explicit SocketTransport(SocketOptions options);
  ~SocketTransport() override;
  absl::Status Start();

  KvSender& sender() override { return *this; }
  KvReceiver& receiver() override { return *this; }
  absl::Status CheckDevice(absl::Duration limit) override {
    return watch_.Check(limit, SteadyNow());
  }

  const std::string& endpoint() const override { return endpoint_; }
  uint64_t incarnation() const override { return context_.incarnation; }
  absl::Status Open(const v1::Lease& lease, int64_t rows, LeaseDone on_done) override {
    return leases_.Open(lease, rows, std::move(on_done));
  }
  absl::Status Close(uint64_t lease, absl::Duration timeout) override {
    return leases_.Close(lease, timeout);
  }
  KvReceiverStats receiver_stats() const override;

  absl::StatusOr<TransferId> Begin(const v1::Lease& lease, absl::Duration timeout,
                                   SentDone on_sent) override;
  absl::Status Write(TransferId transfer, absl::Span<const PageWrite> writes) override {
    return transfers_.Write(transfer, writes);
  }
  void Abort(TransferId transfer) override { transfers_.Abort(transfer); }
  KvSenderStats sender_stats() const override { return transfers_.stats(); }

 private:
  void Wake();
  void Run();
  bool HandleEvents(absl::Span<const Poller::Event> events);
  void Shutdown();

  const std::string host_;
  const FileDescriptor wake_{eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  std::atomic<bool> woken_{false};
  DeviceWatch watch_;
  std::string endpoint_;
  const std::unique_ptr<PageMover> mover_;  // before those who use it, behind what it wakes
  std::optional<StagingPool> staging_;
  const SessionContext context_;
  LeaseTable leases_;
  TransferTable transfers_;
  std::atomic<bool> stop_{false};

  // Of the thread, once it runs.
  Poller poller_;
  SocketReceiver receiver_;
  SocketSender sender_;
  bool watching_ = false;  // there are transfers, or may be

  std::thread thread_;
};

SocketTransport::SocketTransport(SocketOptions options)
    : host_(std::move(options.host)),
      mover_(options.mover == nullptr
                 ? nullptr
                 : std::make_unique<WatchedMover>(std::move(options.mover), &watch_)),
      context_{.layout = options.memory.layout,
               .incarnation = options.incarnation,
               .checksums = options.checksums,
               .mover = mover_.get(),
               .staging = mover_ == nullptr
                              ? nullptr
                              : &staging_.emplace(mover_.get(), options.memory.layout)},
      leases_(options.memory, options.incarnation, [this] { Wake(); }),
      transfers_(options.memory, context_.mover != nullptr ? kDeviceLimits : TransferLimits{},
                 [this] { Wake(); }),
      receiver_(&context_, &leases_, &poller_),
      sender_(&context_, &transfers_, &poller_, options.memory.handle, options.medium,
              options.silence_max) {
  if (mover_ != nullptr) mover_->SetWake([this] { Wake(); });
}

absl::Status SocketTransport::Start() {
  if (!wake_.valid() || !poller_.valid() ||
      !poller_.Add(wake_.get(), Poller::Owner::kTransport, 0, EPOLLIN)) {
    return absl::UnavailableError(
        "KV transport: the system has no more descriptors; see how many files may be open (ulimit "
        "-n)");
  }
  SLUICE_RETURN_IF_ERROR(receiver_.Listen(host_));
  endpoint_ = receiver_.endpoint().Encode();
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

SocketTransport::~SocketTransport() {
  stop_ = true;
  Wake();
  if (thread_.joinable()) thread_.join();
}

KvReceiverStats SocketTransport::receiver_stats() const {
  KvReceiverStats stats = leases_.stats();
  stats.connections = receiver_.connections();
  stats.connections_refused = receiver_.refused();
  return stats;
}

absl::StatusOr<TransferId> SocketTransport::Begin(const v1::Lease& lease, absl::Duration timeout,
                                                  SentDone on_sent) {
  const absl::StatusOr<SocketEndpoint> endpoint = SocketEndpoint::Decode(lease.endpoint());
  if (!endpoint.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("lease ", lease.lease(), ": ", endpoint.status().message()));
  }
  if (endpoint->incarnation != lease.incarnation()) {
    return absl::InvalidArgumentError(absl::StrCat("lease ", lease.lease(), " of incarnation ",
                                                   lease.incarnation(), " has an endpoint of ",
                                                   endpoint->incarnation));
  }
  return transfers_.Begin(lease, timeout, std::move(on_sent), SteadyNow());
}

// --- The thread ---

void SocketTransport::Wake() {
  if (woken_.exchange(true)) return;
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof(one));
}

void SocketTransport::Run() {
  absl::Time last_tick = SteadyNow(), last_work = last_tick;
  absl::Duration sleep;
  while (!stop_) {
    const absl::Span<const Poller::Event> events = poller_.Wait(sleep);
    const DeviceWatch::Mark pass = watch_.Begin("a pass of its thread");
    bool worked = HandleEvents(events);
    const absl::Time now = SteadyNow();
    if (now - last_tick >= kTick) {
      // Time in which this thread did not run is nobody else's silence.
      const absl::Duration since_last = std::min(now - last_tick, 2 * kTick);
      last_tick = now;
      receiver_.Tick(since_last);
      sender_.Tick(since_last);
      watching_ = transfers_.Expire(now);
    }
    receiver_.Pump(now);
    worked |= sender_.Pump();
    leases_.RunReady();
    transfers_.RunEnded();
    watch_.End(pass);
    if (worked) last_work = now;
    if (now - last_work < kSpin) {
      sleep = absl::ZeroDuration();
    } else {
      sleep = watching_ || receiver_.NeedsTicks() ? kTick : kIdle;
    }
  }
  Shutdown();
}

bool SocketTransport::HandleEvents(absl::Span<const Poller::Event> events) {
  const absl::Time now = SteadyNow();
  for (const Poller::Event& event : events) {
    switch (event.owner) {
      case Poller::Owner::kTransport: {
        // First read, then lower the flag: a Wake between the two needs no byte, for what it was
        // for is seen below.
        uint64_t count = 0;
        (void)!read(wake_.get(), &count, sizeof(count));
        woken_ = false;
        watching_ = true;
        break;
      }
      case Poller::Owner::kReceiver:
        receiver_.OnEvent(event.id, event.events, now);
        break;
      case Poller::Owner::kSender:
        sender_.OnEvent(event.id, event.events);
        break;
    }
  }
  return !events.empty();
}

void SocketTransport::Shutdown() {
  const absl::Status closed = absl::CancelledError("the transport is being closed");
  transfers_.EndAll(closed);
  sender_.Shutdown(closed);
  transfers_.RunEnded();
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvTransport>> MakeSocketTransport(SocketOptions options) {
  SLUICE_RETURN_IF_ERROR(CheckMemory(options.memory));
  auto transport = std::make_unique<SocketTransport>(std::move(options));
  SLUICE_RETURN_IF_ERROR(transport->Start());
  return transport;
}

}  // namespace sluice::transport
