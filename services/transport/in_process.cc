#include "services/transport/in_process.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/transport/lease_table.h"
#include "services/transport/page_checksum.h"
#include "services/transport/transfer_table.h"

namespace sluice::transport {
namespace {

constexpr absl::string_view kEndpointPrefix = "in-process:";

}  // namespace

class InProcessNetwork::Process final : public KvTransport, KvSender, KvReceiver {
 public:
  Process(InProcessNetwork* network, KvMemory memory, std::string endpoint, uint64_t incarnation)
      : leases_table(memory, incarnation, [network] { network->Wake(); }),
        transfers_table(memory, {}, [network] { network->Wake(); }),
        network_(network),
        endpoint_(std::move(endpoint)),
        incarnation_(incarnation) {}
  ~Process() override { network_->Leave(this); }

  KvSender& sender() override { return *this; }
  KvReceiver& receiver() override { return *this; }
  absl::Status CheckDevice(absl::Duration) override { return absl::OkStatus(); }

  const std::string& endpoint() const override { return endpoint_; }
  uint64_t incarnation() const override { return incarnation_; }
  absl::Status Open(const v1::Lease& lease, int64_t rows, LeaseDone on_done) override {
    return leases_table.Open(lease, rows, std::move(on_done));
  }
  absl::Status Close(uint64_t lease, absl::Duration timeout) override {
    return leases_table.Close(lease, timeout);
  }

  absl::StatusOr<TransferId> Begin(const v1::Lease& lease, absl::Duration timeout,
                                   SentDone on_sent) override {
    if (!absl::StartsWith(lease.endpoint(), kEndpointPrefix)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "lease ", lease.lease(), ": endpoint \"", lease.endpoint(), "\" is not in this process"));
    }
    return transfers_table.Begin(lease, timeout, std::move(on_sent), network_->options_.now());
  }
  absl::Status Write(TransferId transfer, absl::Span<const PageWrite> writes) override {
    return transfers_table.Write(transfer, writes);
  }
  void Abort(TransferId transfer) override { transfers_table.Abort(transfer); }

  KvReceiverStats receiver_stats() const override { return leases_table.stats(); }
  KvSenderStats sender_stats() const override { return transfers_table.stats(); }

  // Of the network, under its run_mutex_.
  LeaseTable leases_table;
  TransferTable transfers_table;
  std::vector<TransferTable::Peer> connections;
  bool alive = true;

 private:
  InProcessNetwork* const network_;
  const std::string endpoint_;
  const uint64_t incarnation_;
};

// A page on its way.
struct InProcessNetwork::Flight {
  Process* from = nullptr;
  Process* to = nullptr;
  TransferTable::Job job;
  absl::Span<std::byte> target;  // empty: it has not arrived
  uint64_t checksum_key = 0;     // as the receiver has it
};

InProcessNetwork::InProcessNetwork(Options options) : options_(std::move(options)) {
  if (options_.own_thread) thread_ = std::thread([this] { ThreadMain(); });
}

InProcessNetwork::~InProcessNetwork() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  woken_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::unique_ptr<KvTransport> InProcessNetwork::Join(KvMemory memory, uint64_t incarnation) {
  const std::lock_guard lock(run_mutex_);
  auto process = std::make_unique<Process>(
      this, std::move(memory), absl::StrCat(kEndpointPrefix, next_endpoint_++), incarnation);
  processes_.push_back(process.get());
  return process;
}

void InProcessNetwork::Leave(Process* process) {
  const std::lock_guard lock(run_mutex_);
  LoseConnections(*process);
  if (process->alive) {
    process->transfers_table.EndAll(absl::CancelledError("the transport is being closed"));
    process->transfers_table.RunEnded();
  }
  std::erase(processes_, process);
}

void InProcessNetwork::Kill(absl::string_view endpoint) {
  const std::lock_guard lock(run_mutex_);
  if (Process* process = FindAlive(endpoint)) {
    process->alive = false;
    LoseConnections(*process);
  }
  Wake();
}

// Others notice that a process is gone.
void InProcessNetwork::LoseConnections(const Process& gone) {
  for (Flight& flight : std::exchange(held_, {})) {
    if (flight.from == &gone) {
      Finish(flight, /*copied=*/false);
    } else if (flight.to == &gone) {
      flight.from->transfers_table.Sent(flight.job, absl::UnavailableError("the receiver is gone"));
    } else {
      held_.push_back(std::move(flight));
    }
  }
  for (Process* process : processes_) {
    for (const TransferTable::Peer& peer : process->connections) {
      if (peer.endpoint != gone.endpoint()) continue;
      process->transfers_table.FailPeer(
          peer.id, absl::UnavailableError(absl::StrCat(peer.endpoint, " is gone")));
    }
    std::erase_if(process->connections, [&](const TransferTable::Peer& peer) {
      return peer.endpoint == gone.endpoint();
    });
  }
  const std::lock_guard lock(mutex_);
  num_held_ = static_cast<int64_t>(held_.size());
}

InProcessNetwork::Process* InProcessNetwork::FindAlive(absl::string_view endpoint) const {
  for (Process* process : processes_) {
    if (process->alive && process->endpoint() == endpoint) return process;
  }
  return nullptr;
}

void InProcessNetwork::Wake() {
  {
    const std::lock_guard lock(mutex_);
    work_ = true;
  }
  woken_.notify_all();
}

void InProcessNetwork::ThreadMain() {
  constexpr auto kTick = std::chrono::milliseconds(10);  // for deadlines
  std::unique_lock lock(mutex_);
  while (!stop_) {
    woken_.wait_for(lock, kTick, [this] { return work_ || stop_; });
    lock.unlock();
    {
      const std::lock_guard run_lock(run_mutex_);
      while (RunOnce()) {
      }
    }
    lock.lock();
  }
}

void InProcessNetwork::RunUntilIdle() {
  const std::lock_guard lock(run_mutex_);
  while (RunOnce()) {
  }
}

bool InProcessNetwork::RunOnce() {
  bool release = false;
  {
    const std::lock_guard lock(mutex_);
    work_ = false;
    release = !hold_at_sender_ && !hold_at_copy_;
  }
  if (release) {
    for (const Flight& flight : std::exchange(held_, {})) {
      if (flight.target.empty()) {
        Arrive(flight);
      } else {
        Finish(flight, true);
      }
    }
  }
  bool moved = false;
  for (Process* process : processes_) {
    if (!process->alive) continue;
    Connect(process);
    moved |= MovePages(process);
    process->transfers_table.Expire(options_.now());
    process->leases_table.RunReady();
    process->transfers_table.RunEnded();
  }
  const std::lock_guard lock(mutex_);
  num_held_ = static_cast<int64_t>(held_.size());
  return moved || work_;  // callbacks may have asked for more
}

void InProcessNetwork::Connect(Process* process) {
  for (TransferTable::Peer& peer : process->transfers_table.NewPeers()) {
    const Process* receiver = FindAlive(peer.endpoint);
    if (receiver == nullptr || receiver->incarnation() != peer.incarnation) {
      process->transfers_table.FailPeer(
          peer.id, absl::UnavailableError(absl::StrCat(peer.endpoint, ", incarnation ",
                                                       peer.incarnation, ", is not there")));
    } else {
      process->connections.push_back(std::move(peer));
    }
  }
}

bool InProcessNetwork::MovePages(Process* process) {
  bool moved = false;
  for (size_t i = 0; i < process->connections.size(); ++i) {
    const TransferTable::Peer peer = process->connections[i];
    while (auto job = process->transfers_table.Take(peer.id)) {
      moved = true;
      Seal(&*job);
      if (!Depart({.from = process, .to = FindAlive(peer.endpoint), .job = *std::move(job)})) {
        break;
      }
    }
  }
  return moved;
}

// False: the connection broke instead.
bool InProcessNetwork::Depart(Flight flight) {
  bool fail = false, hold = false;
  {
    const std::lock_guard lock(mutex_);
    if (fail_next_ > 0) {
      --fail_next_;
      fail = true;
    }
    hold = hold_at_sender_;
  }
  if (fail) {
    const auto status = absl::UnavailableError("the connection broke");
    const PeerId peer = flight.job.peer;
    flight.from->transfers_table.FailPeer(peer, status);
    std::erase_if(flight.from->connections,
                  [&](const TransferTable::Peer& other) { return other.id == peer; });
    flight.from->transfers_table.Sent(flight.job, status);
    return false;
  }
  if (hold) {
    held_.push_back(std::move(flight));
  } else {
    Arrive(std::move(flight));
  }
  return true;
}

void InProcessNetwork::Arrive(Flight flight) {
  const TransferTable::Job& job = flight.job;
  const LeaseTable::Arrival arrival =
      flight.to->leases_table.Start(job.header, job.bytes.size(), options_.now());
  if (arrival.answer != Answer::kTaken) {
    flight.from->transfers_table.Sent(job, absl::OkStatus());
    flight.from->transfers_table.Answered(job.peer, job.header.transfer, arrival.answer);
    return;
  }
  flight.target = arrival.target;
  flight.checksum_key = arrival.checksum_key;
  bool hold = false;
  {
    const std::lock_guard lock(mutex_);
    hold = hold_at_copy_;
  }
  if (hold) {
    held_.push_back(std::move(flight));
  } else {
    Finish(flight, true);
  }
}

void InProcessNetwork::Finish(const Flight& flight, bool copied) {
  const TransferTable::Job& job = flight.job;
  if (!flight.target.empty()) {
    LeaseTable::Copy copy = LeaseTable::Copy::kBroken;
    if (copied) {
      std::memcpy(flight.target.data(), job.bytes.data(), job.bytes.size());
      {
        const std::lock_guard lock(mutex_);
        if (corrupt_next_ > 0) {
          --corrupt_next_;
          flight.target[flight.target.size() / 2] ^= std::byte{4};
        }
      }
      const bool intact =
          PageChecksum(flight.checksum_key, job.header.tag(), flight.target) == job.header.checksum;
      copy = intact ? LeaseTable::Copy::kIntact : LeaseTable::Copy::kDamaged;
    }
    const Answer answer = flight.to->leases_table.Finish(job.header, copy, options_.now());
    flight.from->transfers_table.Answered(job.peer, job.header.transfer, answer);
  }
  flight.from->transfers_table.Sent(job, absl::OkStatus());
}

void InProcessNetwork::CorruptNext(int count) {
  const std::lock_guard lock(mutex_);
  corrupt_next_ += count;
}

void InProcessNetwork::FailNext() {
  const std::lock_guard lock(mutex_);
  ++fail_next_;
}

void InProcessNetwork::Hold(HoldAt where) {
  const std::lock_guard lock(mutex_);
  (where == HoldAt::kSender ? hold_at_sender_ : hold_at_copy_) = true;
}

void InProcessNetwork::Release() {
  {
    const std::lock_guard lock(mutex_);
    hold_at_sender_ = hold_at_copy_ = false;
  }
  Wake();
}

int64_t InProcessNetwork::num_held() const {
  const std::lock_guard lock(mutex_);
  return num_held_;
}

}  // namespace sluice::transport
