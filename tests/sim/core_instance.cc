#include "tests/sim/core_instance.h"

#include <utility>

#include "gtest/gtest.h"

namespace sluice::sim {
namespace {

constexpr int64_t kLayers = 2;
constexpr int64_t kRows = 64;

}  // namespace

// Takes rows into open leases, and tells the core when a lease is complete.
class CoreInstance::Receiver final : public transport::KvReceiver {
 public:
  explicit Receiver(CoreInstance* owner) : owner_(owner) {}

  const std::string& endpoint() const override { return endpoint_; }
  uint64_t incarnation() const override { return owner_->options_.hello.incarnation(); }
  absl::Status Open(const v1::Lease& lease, int64_t rows, transport::LeaseDone on_done) override {
    const auto [it, added] = leases_.try_emplace(lease.lease());
    EXPECT_TRUE(added) << "a lease number twice";
    it->second = {lease, rows * kLayers, std::move(on_done)};
    if (rows == 0)
      owner_->world_->After(absl::ZeroDuration(), Report(lease.lease(), absl::OkStatus()));
    return absl::OkStatus();
  }
  absl::Status Close(uint64_t lease, absl::Duration) override {
    // Now and then a copy is in flight just then.
    if (leases_.contains(lease) && owner_->world_->Chance(0.2))
      return absl::DeadlineExceededError("in flight");
    leases_.erase(lease);
    return absl::OkStatus();
  }
  transport::KvReceiverStats receiver_stats() const override { return {}; }

  // False: nobody waits for it.
  bool Take(uint64_t lease, const transport::PageWrite& write, const std::vector<uint32_t>& rows) {
    const auto it = leases_.find(lease);
    if (it == leases_.end() || it->second.rows_left == 0) return false;
    Lease& open = it->second;
    const int64_t page = open.lease.pages(static_cast<int>(write.index - open.lease.first_page()));
    for (size_t i = 0; i < rows.size(); ++i)
      owner_->Row(write.layer, page, static_cast<int64_t>(i)) = rows[i];
    open.rows_left -= static_cast<int64_t>(rows.size());
    EXPECT_GE(open.rows_left, 0) << "more rows than were leased";
    if (open.rows_left == 0) Report(lease, absl::OkStatus())();
    return true;
  }
  std::function<void()> Report(uint64_t lease, absl::Status status) {
    return [this, alive = std::weak_ptr(alive_), lease, status] {
      if (alive.expired() || !leases_.contains(lease)) return;
      const transport::LeaseDone done = leases_.at(lease).on_done;
      done({.lease = lease, .status = status, .bytes = 1, .duration = absl::Milliseconds(1)});
    };
  }

 private:
  struct Lease {
    v1::Lease lease;
    int64_t rows_left = 0;
    transport::LeaseDone on_done;
  };
  CoreInstance* const owner_;
  const std::string endpoint_ = "sim";
  std::map<uint64_t, Lease> leases_;
  const std::shared_ptr<int> alive_ = std::make_shared<int>(0);
};

// Reads rows when they leave, some time after they were named.
class CoreInstance::Sender final : public transport::KvSender {
 public:
  explicit Sender(CoreInstance* owner) : owner_(owner) {}

  absl::StatusOr<transport::TransferId> Begin(const v1::Lease& lease, absl::Duration timeout,
                                              transport::SentDone on_sent) override {
    const transport::TransferId id = ++last_;
    Transfer& transfer = transfers_[id];
    transfer = {lease, int64_t{lease.pages_size()} * kLayers, std::move(on_sent)};
    transfer.lost = owner_->world_->Chance(owner_->options_.faults.kv_is_lost);
    transfer.fails = owner_->world_->Chance(owner_->options_.faults.kv_fails);
    Later(timeout, [this, id] { End(id, absl::DeadlineExceededError("too slow")); });
    if (transfer.pages_left == 0)
      Later(absl::ZeroDuration(), [this, id] { End(id, absl::OkStatus()); });
    return id;
  }
  absl::Status Write(transport::TransferId id,
                     absl::Span<const transport::PageWrite> writes) override {
    if (!transfers_.contains(id)) return absl::NotFoundError("ended");
    for (const transport::PageWrite& write : writes) {
      const absl::Duration delay =
          owner_->world_->RandomDuration(absl::Milliseconds(1), absl::Milliseconds(40));
      Later(delay, [this, id, write] { Deliver(id, write); });
    }
    return absl::OkStatus();
  }
  void Abort(transport::TransferId id) override {
    const absl::Duration delay =
        owner_->world_->RandomDuration(absl::ZeroDuration(), absl::Milliseconds(30));
    Later(delay, [this, id] { End(id, absl::CancelledError("aborted")); });
  }
  transport::KvSenderStats sender_stats() const override { return {}; }

 private:
  struct Transfer {
    v1::Lease lease;
    int64_t pages_left = 0;
    transport::SentDone on_sent;
    bool lost = false;
    bool fails = false;
  };

  void Later(absl::Duration delay, std::function<void()> event) {
    owner_->world_->After(delay, [alive = std::weak_ptr(alive_), event = std::move(event)] {
      if (!alive.expired()) event();
    });
  }
  void Deliver(transport::TransferId id, const transport::PageWrite& write) {
    const auto it = transfers_.find(id);
    if (it == transfers_.end() || it->second.lost) return;
    Transfer& transfer = it->second;
    const auto peer = owner_->network_->find(transfer.lease.incarnation());
    if (peer == owner_->network_->end())
      return End(id, absl::UnavailableError("the receiver is gone"));
    Receiver& receiver = *peer->second->receiver_;
    std::vector<uint32_t> rows;
    for (int64_t i = 0; i < write.rows; ++i)
      rows.push_back(owner_->Row(write.layer, write.page, i));
    if (transfer.fails) {
      receiver.Report(transfer.lease.lease(), absl::DataLossError("a checksum is wrong"))();
      return End(id, absl::DataLossError("a checksum is wrong"));
    }
    --transfer.pages_left;
    if (!receiver.Take(transfer.lease.lease(), write, rows))
      return End(id, absl::NotFoundError("no such lease"));
    if (transfer.pages_left == 0) End(id, absl::OkStatus());
  }
  void End(transport::TransferId id, const absl::Status& status) {
    auto node = transfers_.extract(id);
    if (!node.empty()) node.mapped().on_sent(id, status);
  }

  CoreInstance* const owner_;
  std::map<transport::TransferId, Transfer> transfers_;
  transport::TransferId last_ = 0;
  const std::shared_ptr<int> alive_ = std::make_shared<int>(0);
};

CoreInstance::CoreInstance(World* world, Options options, Say say, Network* network)
    : world_(world), options_(std::move(options)), say_(std::move(say)), network_(network) {
  const v1::Capacity& capacity = options_.hello.capacity();
  kv_.resize(kLayers * capacity.kv_pages() * kRows);
  last_sampled_.resize(capacity.slots());
  sender_ = std::make_unique<Sender>(this);
  receiver_ = std::make_unique<Receiver>(this);
  instance::CoreOptions core = {.role = options_.hello.role(),
                                .scheduler = {.slots_max = capacity.slots(),
                                              .step_tokens_max = capacity.step_tokens(),
                                              .positions_max = capacity.positions(),
                                              .kv_pages = static_cast<int64_t>(capacity.kv_pages()),
                                              .vocab_size = kVocab},
                                .layers = kLayers,
                                .random_seed = world->Random(1 << 30),
                                .kv_timeout = absl::Seconds(3),
                                .lease_timeout = absl::Seconds(2),
                                .drain_grace = absl::Milliseconds(100)};
  core_ = std::make_unique<instance::InstanceCore>(
      core,
      instance::CorePorts{
          .routers = this,
          .sender = sender_.get(),
          .receiver = receiver_.get(),
          .on_arrived =
              [this](const transport::LeaseResult& r) { core_->OnKvArrived(r, world_->now()); },
          .on_sent =
              [this](transport::TransferId id, const absl::Status& status) {
                core_->OnKvSent(id, status, world_->now());
              },
      });
  network_->emplace(options_.hello.incarnation(), this);
}

CoreInstance::~CoreInstance() { network_->erase(options_.hello.incarnation()); }

uint32_t& CoreInstance::Row(int64_t layer, int64_t page, int64_t row) {
  const int64_t pages = static_cast<int64_t>(options_.hello.capacity().kv_pages());
  return kv_.at(static_cast<size_t>((layer * pages + page) * kRows + row));
}

void CoreInstance::Send(instance::RouterId router, v1::WorkerMessage message) {
  if (router == router_) say_(std::move(message));
}

void CoreInstance::OnMessage(const v1::RouterMessage& message) {
  if (message.has_welcome()) return core_->OnRouterAttached(++router_, world_->now());
  const bool refuse = message.has_admit() && world_->Chance(options_.faults.refuse);
  if (!refuse) return core_->OnRouterMessage(router_, message, world_->now());
  v1::WorkerMessage refused;
  refused.mutable_refused()->set_request(message.admit().request());
  refused.mutable_refused()->set_attempt(message.admit().attempt());
  refused.mutable_refused()->set_code(v1::Refused::CODE_NO_ROOM);
  say_(std::move(refused));
}

void CoreInstance::OnRouterGone() { core_->OnRouterGone(router_, world_->now()); }

void CoreInstance::Step() {
  if (wedged_) return;
  ++progress_;
  if (!running_.empty()) {
    const engine::StepResult result = std::move(running_.front());
    running_.pop_front();
    core_->OnStepResult(result, world_->now());
  }
  while (const engine::StepPlan* plan = core_->NextPlan(world_->now())) {
    running_.push_back(Execute(*plan));
    for (int64_t layer = 0; layer < kLayers; ++layer)
      core_->kv_push().OnKvWritten(plan->number, layer, {});
  }
  core_->OnTick(world_->now());
}

engine::StepResult CoreInstance::Execute(const engine::StepPlan& plan) {
  engine::StepResult result = {.number = plan.number};
  for (const engine::StepChunk& chunk : plan.chunks) {
    int64_t position = chunk.first_position;
    for (const int32_t token : chunk.tokens) {
      const int32_t known = token == engine::kSampledToken ? last_sampled_[chunk.slot] : token;
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        Row(layer, chunk.pages[position / kRows], position % kRows) = static_cast<uint32_t>(known);
      }
      ++position;
    }
    if (chunk.sampling == nullptr) continue;
    uint64_t hashes[kLayers];
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      hashes[layer] = kNoTokens;
      for (int64_t i = 0; i < position; ++i) {
        hashes[layer] = Fold(hashes[layer], Row(layer, chunk.pages[i / kRows], i % kRows));
      }
    }
    engine::SampledToken sampled = {.token_id = static_cast<int32_t>(NextToken(hashes[0]))};
    if (hashes[0] != hashes[1]) sampled.token_id = 0;  // wrong, all but once in a thousand
    sampled.not_finite = world_->Chance(options_.faults.damaged);
    last_sampled_[chunk.slot] = sampled.token_id;
    result.slots.push_back({.slot = chunk.slot, .tokens = {sampled}});
  }
  return result;
}

void CoreInstance::Heartbeat() {
  if (router_ == 0) return;
  v1::WorkerMessage message;
  *message.mutable_heartbeat() = core_->MakeHeartbeat(world_->now());
  message.mutable_heartbeat()->set_progress(progress_);
  say_(std::move(message));
}

bool CoreInstance::idle() const {
  const engine::KvPool& pool = core_->scheduler().kv_pool();
  return core_->num_attempts() == 0 && core_->num_transfers() == 0 && pool.num_quarantined() == 0 &&
         pool.num_free() == pool.num_pages();
}

}  // namespace sluice::sim
