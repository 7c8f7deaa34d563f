#include "tests/sim/sim_cluster.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "services/model/page_hash.h"
#include "services/router/retry_hint.h"

namespace sluice::sim {
namespace {

constexpr absl::Duration kStep = absl::Milliseconds(20);
constexpr absl::Duration kTick = absl::Milliseconds(50);
constexpr absl::Duration kHeartbeat = absl::Milliseconds(250);
constexpr absl::Duration kSettle = absl::Minutes(3);

void NamePages(router::Prompt* prompt) {
  const std::vector<int32_t> tokens(prompt->ids.begin(), prompt->ids.end());
  model::PageHasher hasher;
  const model::PageHash root = hasher.Root({}, {}, "");
  std::vector<model::PageHash> hashes;
  hasher.Extend(root, tokens, &hashes);
  prompt->page_hash_seed.assign(root.begin(), root.end());
  for (const model::PageHash& hash : hashes) prompt->page_hashes.append(hash.begin(), hash.end());
}

}  // namespace

class Cluster::Probe final : public router::RouterProbe {
 public:
  explicit Probe(Tally* tally) : tally_(*tally) {}
  void OnRejected(absl::string_view reason) override {
    ++tally_[absl::StrCat("rejected ", reason)];
  }
  void OnRequestEnd(absl::StatusCode code, const router::Usage&, const router::Timings&) override {
    ++tally_[absl::StrCat("end ", absl::StatusCodeToString(code))];
  }
  void OnAttemptFailed(absl::string_view reason) override {
    ++tally_[absl::StrCat("failed ", reason)];
  }
  void OnHandedBack() override { ++tally_["handed back"]; }
  void OnRefusedByWorker() override { ++tally_["refused"]; }
  void OnMigration(router::Migration kind) override {
    ++tally_[kind == router::Migration::kNew ? "migrated new" : "migrated ongoing"];
  }
  void OnKvEvents(absl::string_view status) override { ++tally_[absl::StrCat("kv ", status)]; }

 private:
  Tally& tally_;
};

// Asks for one answer and checks every token of it.
class Cluster::Client final : public router::GenerationSink {
 public:
  explicit Client(Cluster* cluster) : cluster_(cluster) {
    World& world = cluster->world_;
    auto prompt = std::make_shared<router::Prompt>();
    prompt->ids.resize(1 + world.Random(world.Chance(0.2) ? 600 : 80));
    for (uint32_t& id : prompt->ids) id = static_cast<uint32_t>(world.Random(kVocab));
    // Many begin alike.
    const size_t shared = world.Chance(0.5) ? world.Random(prompt->ids.size()) : 0;
    std::fill_n(prompt->ids.begin(), shared, static_cast<uint32_t>(world.Random(2)));
    for (uint32_t id : prompt->ids) hash_ = Fold(hash_, id);
    NamePages(prompt.get());
    request.prompt = prompt;
    request.priority = static_cast<uint32_t>(world.Random(3));
    request.sampling.set_max_tokens(static_cast<uint32_t>(1 + world.Random(60)));
    request.sampling.set_top_p(1);
    request.sampling.set_repetition_penalty(1);
    request.sampling.set_num_logprobs(world.Chance(0.2) ? 0 : -1);
    if (world.Chance(0.2))
      request.deadline = world.now() + world.RandomDuration(absl::Seconds(1), absl::Seconds(90));
    if (world.Chance(0.05)) cancel_at_token_ = 1 + world.Random(20);
  }

  void OnOutput(const router::Output& output) override {
    CheckLive();
    ASSERT_FALSE(output.token_ids.empty());
    for (uint32_t token : output.token_ids) {
      ASSERT_EQ(token, NextToken(hash_)) << "token " << received_ << " of request " << id;
      hash_ = Fold(hash_, token);
      ++received_;
    }
    EXPECT_EQ(output.logprobs != nullptr, request.sampling.num_logprobs() >= 0);
    EXPECT_EQ(output.usage.output_tokens, received_);
    if (output.finish != v1::FINISH_UNSPECIFIED) {
      EXPECT_EQ(received_, request.sampling.max_tokens());
      ended = true;
    } else if (cancel_at_token_ > 0 && received_ >= cancel_at_token_) {
      Cancel();
    }
  }

  void OnError(const absl::Status& status) override {
    CheckLive();
    ended = true;
    switch (status.code()) {
      case absl::StatusCode::kDeadlineExceeded:
        EXPECT_GE(cluster_->world_.now(), request.deadline);
        break;
      case absl::StatusCode::kUnavailable:
      case absl::StatusCode::kResourceExhausted:
        EXPECT_TRUE(cluster_->options_.faults) << status;
        EXPECT_TRUE(router::RetryAfter(status).has_value()) << status;
        break;
      default:
        ADD_FAILURE() << status;
    }
  }

  void Cancel() {
    if (!accepted || ended) return;
    ended = true;
    cluster_->core_->Cancel(id, cluster_->world_.now());
  }

  router::GenerationRequest request;
  router::RequestId id = 0;
  bool accepted = false;
  bool ended = false;

 private:
  void CheckLive() {
    EXPECT_TRUE(accepted);
    EXPECT_FALSE(ended) << "request " << id << " hears more after its end";
  }

  Cluster* const cluster_;
  uint64_t hash_ = kNoTokens;  // of the prompt and what was received
  uint64_t received_ = 0;
  uint64_t cancel_at_token_ = 0;
};

Cluster::Cluster(const ClusterOptions& options)
    : options_(options), world_(options.seed), end_(world_.now() + options.duration) {
  probe_ = std::make_unique<Probe>(&tally_);
  router::RouterOptions router;
  router.router = "router";
  router.model_hash = "0123456789abcdef";
  router.queued_requests_max = options.queued_requests_max;
  core_ = std::make_unique<router::RouterCore>(router, this, probe_.get());
  const auto add = [&](const std::string& name, v1::Role role) {
    auto process = std::make_unique<Process>();
    process->options.instance = absl::StrCat(name, "-", processes_.size());
    process->options.role = role;
    process->options.slots = static_cast<uint32_t>(2 + world_.Random(6));
    process->options.kv_pages = 20 + world_.Random(80);
    if (options.faults) {
      const auto chance = [&](double most) { return world_.Chance(0.5) ? most : 0; };
      process->options.faults = {.refuse = chance(0.05),
                                 .hand_back = chance(0.002),
                                 .kv_fails = chance(0.03),
                                 .kv_is_lost = chance(0.02),
                                 .damaged = chance(0.001),
                                 .contradicts = chance(0.05),
                                 .gap = chance(0.001),
                                 .repeats = chance(0.05),
                                 .kv_gap = chance(0.1)};
    }
    processes_.push_back(std::move(process));
  };
  for (int i = 0; i < options.prefills; ++i) add("prefill", v1::ROLE_PREFILL);
  for (int i = 0; i < options.decodes; ++i) add("decode", v1::ROLE_DECODE);
  for (int i = 0; i < options.mixed; ++i) add("mixed", v1::ROLE_MIXED);
}

Cluster::~Cluster() = default;

void Cluster::Run() {
  for (const auto& process : processes_) {
    StartProcess(process.get());
    RunProcess(process.get());
  }
  Tick();
  if (options_.faults) MaybeBreakSomething();
  for (int i = 0; i < options_.requests; ++i) {
    clients_.push_back(std::make_unique<Client>(this));
    Client* const client = clients_.back().get();
    const absl::Duration when = world_.RandomDuration(absl::Seconds(1), options_.duration);
    world_.After(when, [this, client] { Submit(client); });
    if (world_.Chance(0.05)) {
      world_.After(when + world_.RandomDuration(absl::ZeroDuration(), absl::Seconds(3)),
                   [client] { client->Cancel(); });
    }
  }
  world_.After(options_.duration, [this] { StopFaults(); });

  while (world_.now() < end_ + kSettle && world_.Step() && !testing::Test::HasFailure()) continue;

  for (const auto& client : clients_) {
    EXPECT_EQ(client->accepted, client->ended) << "request " << client->id;
  }
  EXPECT_TRUE(core_->idle());
  const router::RouterSnapshot snapshot = core_->Snapshot();
  EXPECT_EQ(snapshot.queued, 0);
  EXPECT_EQ(snapshot.instances.size(), processes_.size()) << "all are back";
  for (const router::InstanceSnapshot& instance : snapshot.instances) {
    EXPECT_EQ(instance.legs, 0) << instance.hello.instance();
    EXPECT_EQ(instance.state, router::InstanceState::kReady) << instance.hello.instance();
  }
  for (const auto& process : processes_) {
    EXPECT_TRUE(process->instance->idle())
        << process->options.instance << " was not told of an end";
  }
}

void Cluster::Submit(Client* client) {
  const auto id = core_->Submit(client->request, client, world_.now());
  if (!id.ok()) {
    ++tally_["not accepted"];
    return;
  }
  client->id = *id;
  client->accepted = true;
}

// --- Processes and streams ---

void Cluster::StartProcess(Process* process) {
  process->options.incarnation = next_incarnation_++;
  process->frozen = false;
  const auto say = [this, process,
                    incarnation = process->options.incarnation](v1::WorkerMessage message) {
    OnWorkerSays(process, incarnation, std::move(message));
  };
  auto worker = std::make_unique<SimWorker>(
      &world_, process->options, say, [this](uint64_t incarnation, uint64_t lease, bool fails) {
        PushKv(incarnation, lease, fails);
      });
  if (options_.real_cores) {
    const CoreInstance::Options options = {.hello = worker->hello(),
                                           .faults = process->options.faults};
    process->instance = std::make_unique<CoreInstance>(&world_, options, say, &network_);
  } else {
    process->instance = std::move(worker);
  }
  if (over()) process->instance->StopFaults();
  Dial(process);
}

void Cluster::Dial(Process* process) {
  process->stream = next_stream_++;
  process->to_worker.clear();
  process->to_router.clear();
  v1::WorkerMessage hello;
  *hello.mutable_hello() = process->instance->hello();
  OnWorkerSays(process, process->options.incarnation, std::move(hello));
}

void Cluster::Kill(Process* process, absl::Duration down) {
  if (process->instance == nullptr) return;
  process->instance.reset();
  // A process that dies resets its stream; a machine that dies says nothing for long.
  const absl::Duration silence =
      world_.Chance(0.3) ? absl::Seconds(5) : absl::Milliseconds(world_.Random(50));
  world_.After(silence,
               [this, stream = process->stream] { core_->OnWorkerGone(stream, world_.now()); });
  world_.After(down, [this, process] {
    if (process->instance == nullptr) StartProcess(process);
  });
}

void Cluster::Later(Process* process, std::function<void()> event) {
  world_.After(world_.RandomDuration(absl::Microseconds(100), absl::Milliseconds(15)),
               [process, stream = process->stream, event = std::move(event)] {
                 if (process->stream == stream) event();
               });
}

// Each message has an event of its own, which delivers all that is due: those that overtook wait.
void Cluster::Send(router::WorkerId worker, v1::RouterMessage message) {
  if (message.has_admit()) {
    const v1::Admit& admit = message.admit();
    EXPECT_LE(admit.attempt(), 3 + excused_[admit.request()]) << "request " << admit.request();
  }
  for (const auto& process : processes_) {
    if (process->stream != worker || process->instance == nullptr) continue;
    process->to_worker.push_back(std::move(message));
    Later(process.get(), [p = process.get()] {
      if (p->instance != nullptr && !p->frozen && !p->cut && !p->to_worker.empty()) {
        const v1::RouterMessage first = std::move(p->to_worker.front());
        p->to_worker.pop_front();
        p->instance->OnMessage(first);
      }
    });
    return;
  }
}

// A process that has dialled again, or is another one by now, knows already.
void Cluster::End(router::WorkerId worker, const absl::Status& why) {
  for (const auto& process : processes_) EXPECT_NE(process->stream, worker) << why;
}

void Cluster::OnWorkerSays(Process* process, uint64_t incarnation, v1::WorkerMessage message) {
  if (process->options.incarnation != incarnation) return;
  process->to_router.push_back(std::move(message));
  Later(process, [this, process] {
    if (!process->cut && world_.now() >= router_stalled_until_) FlushToRouter(process);
  });
}

// The oldest message; after a pause those that waited come at once.
void Cluster::FlushToRouter(Process* process) {
  if (process->to_router.empty()) return;
  const v1::WorkerMessage message = std::move(process->to_router.front());
  process->to_router.pop_front();
  switch (message.message_case()) {
    case v1::WorkerMessage::kHello: {
      const absl::Status status =
          core_->OnWorkerHello(process->stream, message.hello(), world_.now());
      if (status.ok()) return;
      EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
      ++tally_["dialled too early"];
      process->to_router.clear();
      process->stream = 0;
      world_.After(
          absl::Milliseconds(200), [this, process, incarnation = process->options.incarnation] {
            if (process->instance != nullptr && process->options.incarnation == incarnation)
              Dial(process);
          });
      return;
    }
    case v1::WorkerMessage::kRefused:
      ++excused_[message.refused().request()];
      break;
    case v1::WorkerMessage::kAttemptEnded:
      if (message.attempt_ended().reason() == v1::AttemptEnded::REASON_HANDED_BACK ||
          message.attempt_ended().reason() == v1::AttemptEnded::REASON_DRAINING) {
        ++excused_[message.attempt_ended().request()];
      }
      break;
    default:
      break;
  }
  core_->OnWorkerMessage(process->stream, message, world_.now());
}

void Cluster::FlushToWorker(Process* process) {
  while (process->instance != nullptr && !process->to_worker.empty()) {
    const v1::RouterMessage first = std::move(process->to_worker.front());
    process->to_worker.pop_front();
    process->instance->OnMessage(first);
  }
}

void Cluster::Flush(Process* process) {
  if (process->cut) return;
  if (!process->frozen) FlushToWorker(process);
  if (world_.now() < router_stalled_until_) return;
  for (size_t left = process->to_router.size(); left > 0 && !process->to_router.empty(); --left) {
    FlushToRouter(process);
  }
}

void Cluster::PushKv(uint64_t incarnation, uint64_t lease, bool fails) {
  world_.After(world_.RandomDuration(absl::Milliseconds(1), absl::Milliseconds(60)), [=, this] {
    for (const auto& process : processes_) {
      if (process->instance == nullptr || process->options.incarnation != incarnation) continue;
      if (process->frozen) return;  // and times out
      process->instance->OnKv(lease, fails);
    }
  });
}

// --- Time ---

void Cluster::RunProcess(Process* process) {
  const auto beat = std::make_shared<absl::Time>(world_.now());
  const auto turn = std::make_shared<std::function<void()>>();
  *turn = [this, process, beat, turn_weak = std::weak_ptr(turn)] {
    if (process->instance != nullptr && !process->frozen) {
      process->instance->Step();
      if (world_.now() >= *beat + kHeartbeat) {
        *beat = world_.now();
        process->instance->Heartbeat();
      }
    }
    world_.After(kStep, [turn = turn_weak.lock()] { (*turn)(); });
  };
  world_.After(world_.RandomDuration(absl::ZeroDuration(), kStep), [turn] { (*turn)(); });
}

void Cluster::Tick() {
  if (world_.now() >= router_stalled_until_) {
    core_->OnTick(world_.now());
    CheckCounts();
  }
  world_.After(kTick, [this] { Tick(); });
}

void Cluster::CheckCounts() {
  int64_t live = 0;
  for (const auto& client : clients_) live += client->accepted && !client->ended;
  const router::RouterSnapshot snapshot = core_->Snapshot();
  EXPECT_EQ(snapshot.queued + snapshot.prefilling + snapshot.transferring + snapshot.decoding,
            live);
  // Three classes; what lost its place is not turned away.
  EXPECT_LE(snapshot.queued, 3 * options_.queued_requests_max + options_.requests / 2);
}

void Cluster::MaybeBreakSomething() {
  if (over()) return;
  Process* const process = processes_[world_.Random(processes_.size())].get();
  const absl::Duration pause = world_.RandomDuration(absl::Milliseconds(100), absl::Seconds(5));
  switch (world_.Random(7)) {
    case 0:
      ++tally_["killed"];
      Kill(process, pause);
      break;
    case 1:
      ++tally_["wedged"];
      if (process->instance != nullptr) process->instance->SetWedged(true);
      world_.After(pause, [process] {
        if (process->instance != nullptr) process->instance->SetWedged(false);
      });
      break;
    case 2:
      ++tally_["frozen"];
      process->frozen = true;
      world_.After(pause, [this, process] {
        process->frozen = false;
        Flush(process);
      });
      break;
    case 3:
      ++tally_["cut off"];
      process->cut = true;
      world_.After(pause, [this, process] {
        process->cut = false;
        Flush(process);
      });
      break;
    case 4: {  // the stream alone; it may be back before the router knows
      if (process->instance == nullptr || process->frozen) break;
      ++tally_["stream broken"];
      world_.After(absl::Milliseconds(world_.Random(300)),
                   [this, stream = process->stream] { core_->OnWorkerGone(stream, world_.now()); });
      process->instance->OnRouterGone();
      Dial(process);
      break;
    }
    case 5:
      ++tally_["drained"];
      if (process->instance == nullptr || process->frozen) break;
      process->instance->BeginDrain();
      world_.After(absl::Milliseconds(200),
                   [this, process] { Kill(process, absl::Milliseconds(500)); });
      break;
    case 6:
      if (!world_.Chance(0.3)) break;
      ++tally_["router stalled"];
      router_stalled_until_ = world_.now() + pause;
      world_.After(pause, [this] {
        for (const auto& p : processes_) Flush(p.get());
      });
      break;
  }
  world_.After(world_.RandomDuration(absl::Milliseconds(200), absl::Seconds(4)),
               [this] { MaybeBreakSomething(); });
}

void Cluster::StopFaults() {
  for (const auto& process : processes_) {
    process->options.faults = {};
    if (process->instance != nullptr) process->instance->StopFaults();
  }
}

}  // namespace sluice::sim
