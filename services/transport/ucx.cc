#include "services/transport/ucx.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/transport/lease_table.h"
#include "services/transport/transfer_table.h"
#include "services/transport/ucx_worker.h"

namespace sluice::transport {
namespace {

// An endpoint, as leases carry it: this, the incarnation (8 bytes), the socket address that the
// receiver listens on. The digits are the version of all that follows.
constexpr absl::string_view kEndpointPrefix = "sluice-kv-1:";

// Active messages. A sender says kHello first and sends pages once it is welcome.
enum MessageId : unsigned { kHello = 1, kWelcome, kPage, kAnswer, kPing, kPong };

struct Hello {
  uint64_t peer = 0;         // what the sender calls this receiver, in answers too
  uint64_t sender = 0;       // incarnation
  uint64_t incarnation = 0;  // of the receiver, as the sender knows it
  int64_t layers = 0;
  int64_t page_rows = 0;
  int64_t row_bytes = 0;
};
enum class Verdict : uint64_t { kWelcome, kOtherIncarnation, kOtherLayout };
struct Welcome {
  uint64_t peer = 0;
  Verdict verdict = Verdict::kWelcome;
};
struct Ping {
  uint64_t peer = 0;
  uint64_t sender = 0;
};

template <typename T>
absl::string_view AsBytes(const T& message) {
  static_assert(std::has_unique_object_representations_v<T>);
  return {reinterpret_cast<const char*>(&message), sizeof(message)};
}
template <typename T>
bool Parse(const void* bytes, size_t size, T* message) {
  if (size != sizeof(*message)) return false;
  std::memcpy(message, bytes, size);
  return true;
}

// Whether a message's bytes came with it, as everything here is sent, and are not to be fetched.
bool IsHere(const ucp_am_recv_param_t& param) {
  return (param.recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0;
}

constexpr absl::Duration kTick = absl::Milliseconds(20);  // of deadlines and silence
constexpr absl::Duration kIdle = absl::Minutes(1);
constexpr absl::Duration kSpin = absl::Microseconds(20);  // before sleeping
constexpr absl::Duration kPingEvery = absl::Milliseconds(200);
constexpr absl::Duration kShutdown = absl::Seconds(1);
constexpr int kPagesAtOnce = 16;  // between two looks at what has come
constexpr int kProgressAtOnce = 64;

absl::Time SteadyNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

class UcxTransport final : public KvTransport, KvSender, KvReceiver {
 public:
  UcxTransport(UcxOptions options, std::unique_ptr<UcxWorker> worker);
  ~UcxTransport() override;
  absl::Status Listen();
  void Start() {
    thread_ = std::thread([this] { Run(); });
  }

  KvSender& sender() override { return *this; }
  KvReceiver& receiver() override { return *this; }

  const std::string& endpoint() const override { return endpoint_; }
  uint64_t incarnation() const override { return options_.incarnation; }
  absl::Status Open(const v1::Lease& lease, int64_t rows, LeaseDone on_done) override {
    return leases_.Open(lease, rows, std::move(on_done));
  }
  absl::Status Close(uint64_t lease, absl::Duration timeout) override {
    return leases_.Close(lease, timeout);
  }
  KvReceiverStats receiver_stats() const override { return leases_.stats(); }

  absl::StatusOr<TransferId> Begin(const v1::Lease& lease, absl::Duration timeout,
                                   SentDone on_sent) override;
  absl::Status Write(TransferId transfer, absl::Span<const PageWrite> writes) override {
    return transfers_.Write(transfer, writes);
  }
  void Abort(TransferId transfer) override { transfers_.Abort(transfer); }
  KvSenderStats sender_stats() const override { return transfers_.stats(); }

 private:
  // A receiver that this process sends to.
  struct SendPeer {
    PeerId id = 0;
    std::unique_ptr<UcxEndpoint> endpoint;
    bool welcome = false;
    absl::Duration silence;  // while something was asked of it
    absl::Duration since_ping;
    absl::Status status;  // not ok: lost
  };
  // A sender that this process answers.
  struct ReceivePeer {
    uint64_t sender = 0;  // incarnation, once it said hello
    PeerId id = 0;        // what it calls us
    std::unique_ptr<UcxEndpoint> endpoint;
    bool lost = false;
  };
  // A page that UCX reads.
  struct PageSend {
    UcxTransport* transport = nullptr;
    TransferTable::Job job;
  };
  void Wake();
  void Run();
  bool RunOnce();
  void Tick(absl::Duration since_last);
  void Shutdown();

  void Connect(const TransferTable::Peer& peer);
  bool SendPages(SendPeer* peer);
  void SendPage(SendPeer* peer, TransferTable::Job job);
  void PageSent(PageSend* send, ucs_status_t status);
  void SendPing(SendPeer* peer);
  SendPeer* Heard(PeerId peer);
  void DropLostPeers();

  void Accept(ucp_conn_request_h request);
  ReceivePeer* FindSender(uint64_t incarnation);
  void SendAnswer(const PageHeader& header, Answer answer);

  template <auto kMethod>
  absl::Status ListenTo(MessageId id);
  ucs_status_t OnHello(const void* header, size_t header_bytes, void* data, size_t bytes,
                       const ucp_am_recv_param_t& param);
  ucs_status_t OnWelcome(const void* header, size_t header_bytes, void* data, size_t bytes,
                         const ucp_am_recv_param_t& param);
  ucs_status_t OnPage(const void* header, size_t header_bytes, void* data, size_t bytes,
                      const ucp_am_recv_param_t& param);
  ucs_status_t OnAnswer(const void* header, size_t header_bytes, void* data, size_t bytes,
                        const ucp_am_recv_param_t& param);
  ucs_status_t OnPing(const void* header, size_t header_bytes, void* data, size_t bytes,
                      const ucp_am_recv_param_t& param);
  ucs_status_t OnPong(const void* header, size_t header_bytes, void* data, size_t bytes,
                      const ucp_am_recv_param_t& param);

  const UcxOptions options_;
  const int wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  std::string endpoint_;
  LeaseTable leases_;
  TransferTable transfers_;
  std::atomic<bool> woken_{false};
  std::atomic<bool> stop_{false};

  // Of the thread.
  std::unique_ptr<UcxWorker> worker_;
  absl::flat_hash_map<PeerId, std::unique_ptr<SendPeer>> send_peers_;
  absl::flat_hash_map<ucp_ep_h, std::unique_ptr<ReceivePeer>> receive_peers_;
  absl::flat_hash_map<uint64_t, ReceivePeer*> senders_;  // of those that said hello, by incarnation
  std::vector<std::unique_ptr<UcxEndpoint>> closing_;
  absl::flat_hash_set<PageSend*> sends_;
  bool watching_ = false;  // there are transfers
  bool peers_lost_ = false;

  std::thread thread_;
};

UcxTransport::UcxTransport(UcxOptions options, std::unique_ptr<UcxWorker> worker)
    : options_(std::move(options)),
      leases_(options_.memory, options_.incarnation, [this] { Wake(); }),
      transfers_(options_.memory, options_.incarnation, {}, [this] { Wake(); }),
      worker_(std::move(worker)) {
  endpoint_ = absl::StrCat(kEndpointPrefix, AsBytes(options_.incarnation), worker_->address());
}

UcxTransport::~UcxTransport() {
  stop_ = true;
  Wake();
  if (thread_.joinable()) thread_.join();
  close(wake_fd_);
}

template <auto kMethod>
absl::Status UcxTransport::ListenTo(MessageId id) {
  return worker_->Listen(
      id,
      [](void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
         const ucp_am_recv_param_t* param) {
        return (static_cast<UcxTransport*>(self)->*kMethod)(header, header_bytes, data, bytes,
                                                            *param);
      },
      this);
}

absl::Status UcxTransport::Listen() {
  SLUICE_RETURN_IF_ERROR(ListenTo<&UcxTransport::OnHello>(kHello));
  SLUICE_RETURN_IF_ERROR(ListenTo<&UcxTransport::OnWelcome>(kWelcome));
  SLUICE_RETURN_IF_ERROR(ListenTo<&UcxTransport::OnPage>(kPage));
  SLUICE_RETURN_IF_ERROR(ListenTo<&UcxTransport::OnAnswer>(kAnswer));
  SLUICE_RETURN_IF_ERROR(ListenTo<&UcxTransport::OnPing>(kPing));
  return ListenTo<&UcxTransport::OnPong>(kPong);
}

absl::StatusOr<TransferId> UcxTransport::Begin(const v1::Lease& lease, absl::Duration timeout,
                                               SentDone on_sent) {
  const uint64_t incarnation = lease.incarnation();
  const std::string wanted = absl::StrCat(kEndpointPrefix, AsBytes(incarnation));
  if (!absl::StartsWith(lease.endpoint(), wanted) || lease.endpoint().size() == wanted.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "lease ", lease.lease(), ": its endpoint (", lease.endpoint().size(),
        " bytes) is not one of \"", kEndpointPrefix, "\" and incarnation ", incarnation));
  }
  return transfers_.Begin(lease, timeout, std::move(on_sent), SteadyNow());
}

// --- The thread ---

void UcxTransport::Wake() {
  if (woken_.exchange(true)) return;
  const uint64_t one = 1;
  (void)!write(wake_fd_, &one, sizeof(one));
}

void UcxTransport::Run() {
  absl::Time last_tick = SteadyNow(), last_work = last_tick;
  while (!stop_) {
    // The flag first: a Wake from here on writes again, and what it was for is seen below.
    if (woken_.exchange(false)) {
      uint64_t count = 0;
      (void)!read(wake_fd_, &count, sizeof(count));
    }
    const bool worked = RunOnce();
    const absl::Time now = SteadyNow();
    if (now - last_tick >= kTick) {
      Tick(now - last_tick);
      last_tick = now;
    }
    if (worked) {
      last_work = now;
    } else if (now - last_work >= kSpin && !woken_.load() && !stop_) {
      worker_->Sleep(wake_fd_, watching_ || !closing_.empty() ? kTick : kIdle);
    }
  }
  Shutdown();
}

bool UcxTransport::RunOnce() {
  bool worked = false;
  for (const TransferTable::Peer& peer : transfers_.NewPeers()) {
    Connect(peer);
    watching_ = true;
  }
  for (ucp_conn_request_h request : worker_->TakeRequests()) Accept(request);
  for (auto& [id, peer] : send_peers_) worked |= SendPages(peer.get());
  for (int i = 0; i < kProgressAtOnce && worker_->Progress(); ++i) worked = true;
  if (peers_lost_) DropLostPeers();
  std::erase_if(closing_, [](const auto& endpoint) { return endpoint->IsClosed(); });
  leases_.RunReady();
  transfers_.RunEnded();
  return worked;
}

void UcxTransport::Tick(absl::Duration since_last) {
  // Time in which this thread did not run is nobody else's silence.
  since_last = std::min(since_last, 2 * kTick);
  for (auto& [id, peer] : send_peers_) {
    if (!transfers_.Busy(id)) {
      peer->silence = peer->since_ping = absl::ZeroDuration();
      continue;
    }
    peer->silence += since_last;
    peer->since_ping += since_last;
    if (peer->silence >= options_.peer_timeout) {
      peer->status = absl::UnavailableError(absl::StrCat("the receiver has not been heard of for ",
                                                         absl::FormatDuration(peer->silence)));
      peers_lost_ = true;
    } else if (peer->since_ping >= kPingEvery) {
      SendPing(peer.get());
    }
  }
  watching_ = transfers_.Expire(SteadyNow());
}

// Bounded: what UCX does not give back in time it does not touch any more either, without progress.
void UcxTransport::Shutdown() {
  transfers_.EndAll(absl::CancelledError("the transport is being closed"));
  for (auto& [id, peer] : send_peers_) closing_.push_back(std::move(peer->endpoint));
  for (auto& [handle, peer] : receive_peers_) closing_.push_back(std::move(peer->endpoint));
  for (auto& endpoint : closing_) endpoint->Close();
  send_peers_.clear();
  senders_.clear();
  receive_peers_.clear();
  const absl::Time end = SteadyNow() + kShutdown;
  while (!closing_.empty() && SteadyNow() < end) {
    worker_->Progress();
    std::erase_if(closing_, [](const auto& endpoint) { return endpoint->IsClosed(); });
  }
  for (ucp_conn_request_h request : worker_->TakeRequests()) worker_->Reject(request);
  UcxWorker::Retire(std::move(worker_));
  for (PageSend* send : sends_) {
    transfers_.Sent(send->job, absl::CancelledError(""));
    delete send;
  }
  transfers_.RunEnded();
}

// --- Sending ---

void UcxTransport::Connect(const TransferTable::Peer& target) {
  auto peer = std::make_unique<SendPeer>();
  peer->id = target.id;
  SendPeer* raw = peer.get();
  const auto lose = [this, raw](const absl::Status& status) {
    raw->status = status;
    peers_lost_ = true;
  };
  const size_t prefix = kEndpointPrefix.size() + sizeof(uint64_t);
  auto endpoint =
      UcxEndpoint::Connect(worker_.get(), absl::string_view(target.endpoint).substr(prefix), lose);
  if (!endpoint.ok()) {
    transfers_.FailPeer(target.id, endpoint.status());
    return;
  }
  peer->endpoint = *std::move(endpoint);
  send_peers_.emplace(target.id, std::move(peer));
  const KvLayout& layout = options_.memory.layout;
  const Hello hello{.peer = target.id,
                    .sender = options_.incarnation,
                    .incarnation = target.incarnation,
                    .layers = layout.layers,
                    .page_rows = layout.page_rows,
                    .row_bytes = layout.row_bytes};
  if (!raw->endpoint->Send(kHello, AsBytes(hello), worker_->address(), UCP_AM_SEND_FLAG_REPLY)) {
    lose(absl::UnavailableError("the receiver cannot be reached"));
  }
}

bool UcxTransport::SendPages(SendPeer* peer) {
  for (int i = 0; i < kPagesAtOnce; ++i) {
    if (!peer->welcome || !peer->status.ok()) return i > 0;
    std::optional<TransferTable::Job> job = transfers_.Take(peer->id);
    if (!job) return i > 0;
    if (options_.checksums) Seal(&*job);
    SendPage(peer, *std::move(job));
  }
  return true;
}

void UcxTransport::SendPage(SendPeer* peer, TransferTable::Job job) {
  auto* send = new PageSend{.transport = this, .job = std::move(job)};
  sends_.insert(send);
  ucp_request_param_t params = {};
  params.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = UCP_AM_SEND_FLAG_EAGER;
  params.user_data = send;
  params.cb.send = [](void* request, ucs_status_t status, void* user_data) {
    auto* send = static_cast<PageSend*>(user_data);
    send->transport->PageSent(send, status);
    ucp_request_free(request);
  };
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(peer->endpoint->handle(), kPage, &send->job.header, sizeof(send->job.header),
                      send->job.bytes.data(), send->job.bytes.size(), &params);
  if (request == nullptr || UCS_PTR_IS_ERR(request)) PageSent(send, UCS_PTR_STATUS(request));
}

void UcxTransport::PageSent(PageSend* send, ucs_status_t status) {
  sends_.erase(send);
  // A page that left says that the peer reads: the answer to a ping may be far behind it.
  if (status == UCS_OK) Heard(send->job.peer);
  transfers_.Sent(send->job, status == UCS_OK ? absl::OkStatus()
                                              : UcxError("a page could not be sent", status));
  delete send;
}

void UcxTransport::SendPing(SendPeer* peer) {
  peer->since_ping = absl::ZeroDuration();
  peer->endpoint->Send(kPing, AsBytes(Ping{.peer = peer->id, .sender = options_.incarnation}));
}

UcxTransport::SendPeer* UcxTransport::Heard(PeerId id) {
  const auto found = send_peers_.find(id);
  if (found == send_peers_.end()) return nullptr;
  found->second->silence = absl::ZeroDuration();
  return found->second.get();
}

void UcxTransport::DropLostPeers() {
  peers_lost_ = false;
  absl::erase_if(send_peers_, [&](auto& entry) {
    SendPeer& peer = *entry.second;
    if (peer.status.ok()) return false;
    transfers_.FailPeer(peer.id, peer.status);
    peer.endpoint->Close();
    closing_.push_back(std::move(peer.endpoint));
    return true;
  });
  absl::erase_if(receive_peers_, [&](auto& entry) {
    ReceivePeer& peer = *entry.second;
    if (!peer.lost) return false;
    const auto known = senders_.find(peer.sender);
    if (known != senders_.end() && known->second == &peer) senders_.erase(known);
    peer.endpoint->Close();
    closing_.push_back(std::move(peer.endpoint));
    return true;
  });
}

ucs_status_t UcxTransport::OnWelcome(const void* header, size_t header_bytes, void*, size_t,
                                     const ucp_am_recv_param_t&) {
  Welcome welcome;
  if (!Parse(header, header_bytes, &welcome)) return UCS_OK;
  SendPeer* peer = Heard(welcome.peer);
  if (peer == nullptr) return UCS_OK;
  if (welcome.verdict == Verdict::kWelcome) {
    peer->welcome = true;
    return UCS_OK;
  }
  peer->status =
      welcome.verdict == Verdict::kOtherIncarnation
          ? absl::UnavailableError("the receiver has been restarted since")
          : absl::FailedPreconditionError(
                "the receiver's KV has another layout (layers, rows of a page or bytes of "
                "a row)");
  peers_lost_ = true;
  return UCS_OK;
}

ucs_status_t UcxTransport::OnAnswer(const void* header, size_t header_bytes, void*, size_t,
                                    const ucp_am_recv_param_t&) {
  AnswerMessage message;
  if (!Parse(header, header_bytes, &message)) return UCS_OK;
  Heard(message.peer);
  transfers_.Answered(message.peer, message.transfer, message.answer);
  return UCS_OK;
}

ucs_status_t UcxTransport::OnPong(const void* header, size_t header_bytes, void*, size_t,
                                  const ucp_am_recv_param_t&) {
  Ping pong;
  if (Parse(header, header_bytes, &pong)) Heard(pong.peer);
  return UCS_OK;
}

// --- Receiving ---

void UcxTransport::Accept(ucp_conn_request_h request) {
  auto peer = std::make_unique<ReceivePeer>();
  ReceivePeer* raw = peer.get();
  auto endpoint = UcxEndpoint::Accept(worker_.get(), request, [this, raw](const absl::Status&) {
    raw->lost = true;
    peers_lost_ = true;
  });
  if (!endpoint.ok()) return;  // the sender will notice
  peer->endpoint = *std::move(endpoint);
  receive_peers_.emplace(raw->endpoint->handle(), std::move(peer));
}

ucs_status_t UcxTransport::OnHello(const void* header, size_t header_bytes, void*, size_t,
                                   const ucp_am_recv_param_t& param) {
  Hello hello;
  if (!Parse(header, header_bytes, &hello)) return UCS_OK;
  const auto found = receive_peers_.find(param.reply_ep);
  if (found == receive_peers_.end()) return UCS_OK;
  ReceivePeer* peer = found->second.get();
  peer->id = hello.peer;
  peer->sender = hello.sender;
  senders_[hello.sender] = peer;  // instead of a connection that it lost, perhaps
  const KvLayout& layout = options_.memory.layout;
  Verdict verdict = Verdict::kWelcome;
  if (hello.incarnation != options_.incarnation) {
    verdict = Verdict::kOtherIncarnation;
  } else if (hello.layers != layout.layers || hello.page_rows != layout.page_rows ||
             hello.row_bytes != layout.row_bytes) {
    verdict = Verdict::kOtherLayout;
  }
  peer->endpoint->Send(kWelcome, AsBytes(Welcome{.peer = hello.peer, .verdict = verdict}));
  return UCS_OK;
}

UcxTransport::ReceivePeer* UcxTransport::FindSender(uint64_t incarnation) {
  const auto found = senders_.find(incarnation);
  return found == senders_.end() || found->second->lost ? nullptr : found->second;
}

ucs_status_t UcxTransport::OnPage(const void* header_data, size_t header_bytes, void* data,
                                  size_t bytes, const ucp_am_recv_param_t& param) {
  PageHeader header;
  if (!Parse(header_data, header_bytes, &header) || !IsHere(param)) return UCS_OK;
  const LeaseTable::Arrival arrival = leases_.Start(header, bytes, SteadyNow());
  Answer answer = arrival.answer;
  if (answer == Answer::kTaken) {
    std::memcpy(arrival.target.data(), data, bytes);
    answer = leases_.Finish(header, /*copied=*/true, options_.checksums, SteadyNow());
  }
  SendAnswer(header, answer);
  return UCS_OK;
}

void UcxTransport::SendAnswer(const PageHeader& header, Answer answer) {
  if (answer == Answer::kTaken) return;
  ReceivePeer* peer = FindSender(header.sender);
  if (peer == nullptr) return;
  peer->endpoint->Send(
      kAnswer,
      AsBytes(AnswerMessage{.peer = peer->id, .transfer = header.transfer, .answer = answer}));
}

ucs_status_t UcxTransport::OnPing(const void* header, size_t header_bytes, void*, size_t,
                                  const ucp_am_recv_param_t&) {
  Ping ping;
  if (!Parse(header, header_bytes, &ping)) return UCS_OK;
  if (ReceivePeer* peer = FindSender(ping.sender)) peer->endpoint->Send(kPong, AsBytes(ping));
  return UCS_OK;
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvTransport>> MakeUcxTransport(UcxOptions options) {
  SLUICE_RETURN_IF_ERROR(CheckMemory(options.memory));
  SLUICE_ASSIGN_OR_RETURN(auto worker,
                          UcxWorker::Create(options.transports, options.net_devices, options.host));
  auto transport = std::make_unique<UcxTransport>(std::move(options), std::move(worker));
  SLUICE_RETURN_IF_ERROR(transport->Listen());
  transport->Start();
  return transport;
}

}  // namespace sluice::transport
