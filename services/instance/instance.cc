#include "services/instance/instance.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/base/log.h"

namespace sluice::instance {
namespace {

// A pass at least so often: progress advances while nothing is to be done, fences are asked again.
constexpr absl::Duration kIdlePass = absl::Milliseconds(250);
constexpr absl::Duration kPublish = absl::Milliseconds(50);
constexpr absl::Duration kRateWindow = absl::Seconds(1);
constexpr int kLongestSteps = 100;  // of those that ended lately, until one does not end

}  // namespace

transport::KvMemory KvMemoryOf(const engine::Engine& engine) {
  const engine::KvCacheView view = engine.kv_cache();
  return {.layout = {.layers = static_cast<int64_t>(view.layers.size()),
                     .pages = view.pages,
                     .page_rows = view.page_tokens,
                     .row_bytes = view.row_bytes},
          .layers = view.layers,
          .handle = view.handle};
}

v1::Capacity CapacityOf(const engine::Engine& engine) {
  const engine::EngineOptions& options = engine.options();
  v1::Capacity capacity;
  capacity.set_slots(static_cast<uint32_t>(options.slots_max));
  capacity.set_kv_pages(static_cast<uint64_t>(options.kv_pages));
  capacity.set_positions(static_cast<uint32_t>(options.positions_max));
  capacity.set_step_tokens(static_cast<uint32_t>(options.step_tokens_max));
  return capacity;
}

void Instance::Mailbox::Post(Event event) {
  const std::lock_guard lock(mutex);
  if (stopping) return;
  events.push_back(std::move(event));
  changed.notify_one();
}

Instance::Instance(const InstanceOptions& options, engine::Engine* engine,
                   transport::KvTransport* transport, InstanceMetrics* metrics, const Clock* clock)
    : options_(options), engine_(engine), transport_(transport), metrics_(metrics), clock_(clock) {
  CoreOptions core = options.core;
  const engine::EngineOptions& sizes = engine->options();
  core.scheduler = {.slots_max = sizes.slots_max,
                    .step_tokens_max = sizes.step_tokens_max,
                    .positions_max = sizes.positions_max,
                    .kv_pages = sizes.kv_pages,
                    .vocab_size = engine->config().vocab_size,
                    .steps_in_flight_max = engine::Engine::kStepsInFlightMax,
                    .requests_max = options.waiting_requests_max + sizes.slots_max};
  core.layers = static_cast<int64_t>(engine->kv_cache().layers.size());
  core_ = std::make_unique<InstanceCore>(core, MakePorts(transport));
  // For whoever listens the engine waits for each layer.
  if (core.role == v1::ROLE_PREFILL) engine->SetLayerListener(&core_->kv_push());
  heartbeat_ = core_->MakeHeartbeat(clock->Now());
}

Instance::~Instance() { Stop(); }

CorePorts Instance::MakePorts(transport::KvTransport* transport) {
  CorePorts ports{.routers = &outbox_};
  if (transport == nullptr) return ports;
  ports.sender = &transport->sender();
  ports.receiver = &transport->receiver();
  ports.on_arrived = [mailbox = mailbox_](const transport::LeaseResult& result) {
    mailbox->Post(result);
  };
  ports.on_sent = [mailbox = mailbox_](transport::TransferId transfer, const absl::Status& status) {
    mailbox->Post(KvSent{transfer, status});
  };
  return ports;
}

void Instance::Start(RouterPort* routers) {
  outbox_.port = routers;
  loop_ = std::thread([this] { Loop(); });
  waiter_ = std::thread([this] { WaitForSteps(); });
  heart_ = std::thread([this] { SendHeartbeats(); });
}

void Instance::Stop() {
  {
    const std::lock_guard lock(mailbox_->mutex);
    mailbox_->stopping = true;
  }
  mailbox_->changed.notify_all();
  if (loop_.joinable()) loop_.join();
  // Nothing is submitted any more; the engine finishes what it has.
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (waiter_.joinable()) waiter_.join();
  if (heart_.joinable()) heart_.join();
  // A step that did not end may do so yet: the transport need not be there any more.
  engine_->SetLayerListener(nullptr);
}

// --- From outside ---

void Instance::OnAttached(RouterId router) { mailbox_->Post(Attached{router}); }

bool Instance::OnMessage(RouterId router, v1::RouterMessage message) {
  {
    const std::lock_guard lock(mailbox_->mutex);
    if (mailbox_->events.size() >= options_.mailbox_max) return false;
  }
  mailbox_->Post(Message{router, std::move(message)});
  return true;
}

void Instance::OnGone(RouterId router) { mailbox_->Post(Gone{router}); }

void Instance::BeginDrain() { mailbox_->Post(Drain{}); }

absl::Status Instance::WaitUntilDone(absl::Duration timeout) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, absl::ToChronoNanoseconds(timeout),
                         [&] { return done_.has_value(); })) {
    return absl::DeadlineExceededError(
        absl::StrCat("still at work after ", absl::FormatDuration(timeout)));
  }
  return *done_;
}

bool Instance::ready() const {
  const std::lock_guard lock(mutex_);
  return heartbeat_.ready();
}

v1::InstanceStatus Instance::status() const {
  v1::InstanceStatus status;
  *status.mutable_capacity() = CapacityOf(*engine_);
  const std::lock_guard lock(mutex_);
  status.set_state(heartbeat_.draining() ? "draining" : heartbeat_.ready() ? "ready" : "dead");
  *status.mutable_load() = heartbeat_.load();
  return status;
}

// --- The loop ---

void Instance::Loop() {
  std::deque<Event> events;
  while (true) {
    {
      // Idle, it passes now and then; with attempts there are deadlines to keep.
      const bool idle = core_->num_attempts() == 0 && !core_->draining() && !unpublished_;
      const absl::Duration wait = idle ? kIdlePass : InstanceCore::kTick;
      std::unique_lock lock(mailbox_->mutex);
      mailbox_->changed.wait_for(lock, absl::ToChronoNanoseconds(wait),
                                 [&] { return mailbox_->stopping || !mailbox_->events.empty(); });
      if (mailbox_->stopping) return;
      events.swap(mailbox_->events);
    }
    const absl::Time now = clock_->Now();
    unpublished_ = unpublished_ || !events.empty();
    for (Event& event : events) Handle(std::move(event), now);
    events.clear();
    CheckTransport(now);
    core_->OnTick(now);
    SubmitPlans(now);
    if (!core_->steps_in_flight()) ++progress_;
    Publish(now);
  }
}

void Instance::Handle(Event event, absl::Time now) {
  if (auto* message = std::get_if<Message>(&event)) {
    core_->OnRouterMessage(message->router, message->message, now);
  } else if (auto* step = std::get_if<StepDone>(&event)) {
    OnStepDone(std::move(*step), now);
  } else if (const auto* arrived = std::get_if<transport::LeaseResult>(&event)) {
    if (metrics_ != nullptr && arrived->status.ok()) metrics_->OnKvReceived(arrived->duration);
    core_->OnKvArrived(*arrived, now);
  } else if (const auto* sent = std::get_if<KvSent>(&event)) {
    core_->OnKvSent(sent->transfer, sent->status, now);
  } else if (const auto* attached = std::get_if<Attached>(&event)) {
    core_->OnRouterAttached(attached->router, now);
  } else if (const auto* gone = std::get_if<Gone>(&event)) {
    core_->OnRouterGone(gone->router, now);
  } else {
    LogInfo("draining", {{"attempts", core_->num_attempts()}});
    core_->BeginDrain(now);
  }
}

void Instance::OnStepDone(StepDone done, absl::Time now) {
  if (failed_) return;
  if (!done.status.ok()) return FailEngine(done.status, now);
  const int64_t outputs = core_->counters().output_tokens;
  core_->OnStepResult(done.result, now);
  ++progress_;
  ++steps_;
  if (metrics_ != nullptr) {
    metrics_->OnStep(core_->last_step().duration, core_->last_step().prompt_tokens,
                     core_->counters().output_tokens - outputs);
  }
}

// A step that computes KV, or one before it, may take its time; then the copy waits for it.
void Instance::CheckTransport(absl::Time now) {
  if (failed_ || transport_ == nullptr) return;
  absl::Duration limit;
  {
    const std::lock_guard lock(mutex_);
    limit = engine::Engine::kStepsInFlightMax * StepLimit();
  }
  const absl::Status status = transport_->CheckDevice(limit);
  if (!status.ok()) FailEngine(status, now);
}

void Instance::SubmitPlans(absl::Time now) {
  while (!failed_) {
    const engine::StepPlan* plan = core_->NextPlan(now);
    if (plan == nullptr) return;
    const absl::StatusOr<engine::StepHandle> handle = engine_->Submit(*plan);
    if (!handle.ok()) return FailEngine(handle.status(), now);
    {
      const std::lock_guard lock(mutex_);
      submitted_.push_back(*handle);
    }
    changed_.notify_all();
  }
}

void Instance::FailEngine(const absl::Status& status, absl::Time now) {
  LogError("the engine has failed", {{"status", status}});
  failed_ = true;
  engine_->Abandon();
  core_->OnEngineFailed(status, now);
}

// What other threads may see of the core.
void Instance::Publish(absl::Time now) {
  const bool done = failed_ || core_->drained();
  const bool due = now >= published_ + kPublish || core_->draining() != published_draining_;
  if (!due && !done) return;
  published_ = now;
  unpublished_ = false;
  published_draining_ = core_->draining();
  UpdateRates(now);
  v1::Heartbeat heartbeat = core_->MakeHeartbeat(now);
  heartbeat.mutable_load()->set_prompt_tokens_per_second(rates_.prompt);
  heartbeat.mutable_load()->set_output_tokens_per_second(rates_.output);
  if (metrics_ != nullptr) metrics_->Update(*core_, heartbeat);
  TellKernels();
  const std::lock_guard lock(mutex_);
  heartbeat_ = std::move(heartbeat);
  if (done && !done_.has_value()) {
    done_ = failed_ ? core_->failure() : absl::OkStatus();
    changed_.notify_all();
  }
}

void Instance::TellKernels() {
  const KernelCalls* const kernels = engine_->kernel_calls();
  if (kernels == nullptr) return;
  const std::vector<KernelCalls::Entry> calls = kernels->Snapshot();
  for (; kernels_told_ < calls.size(); ++kernels_told_) {
    LogInfo("kernel in use",
            {{"op", calls[kernels_told_].op}, {"kernel", calls[kernels_told_].kernel}});
  }
  if (metrics_ != nullptr) metrics_->UpdateKernels(calls);
}

void Instance::UpdateRates(absl::Time now) {
  if (now < rates_.since + kRateWindow) return;
  const CoreCounters& sums = core_->counters();
  const double seconds = absl::ToDoubleSeconds(now - rates_.since);
  const auto rate = [&](int64_t sum, int64_t before) {
    return static_cast<double>(sum - before) / seconds;
  };
  rates_.prompt = rate(sums.prompt_tokens_computed, rates_.sums.prompt_tokens_computed);
  rates_.output = rate(sums.output_tokens, rates_.sums.output_tokens);
  rates_.since = now;
  rates_.sums = sums;
}

// --- The other two threads ---

void Instance::WaitForSteps() {
  while (true) {
    engine::StepHandle handle;
    absl::Duration limit;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || !submitted_.empty(); });
      if (submitted_.empty()) return;
      handle = submitted_.front();
      submitted_.pop_front();
      limit = StepLimit();
    }
    StepDone done;
    done.status = engine_->Wait(handle, limit, &done.result);
    mailbox_->Post(std::move(done));
  }
}

absl::Duration Instance::StepLimit() const {
  return std::max(options_.step_limit_min,
                  kLongestSteps * absl::Milliseconds(heartbeat_.longest_step_ms()));
}

void Instance::SendHeartbeats() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    v1::WorkerMessage message;
    *message.mutable_heartbeat() = heartbeat_;
    message.mutable_heartbeat()->set_progress(progress_.load());
    lock.unlock();
    outbox_.SendToAll(message);
    lock.lock();
    changed_.wait_for(lock, absl::ToChronoNanoseconds(options_.heartbeat),
                      [&] { return stopping_; });
  }
}

}  // namespace sluice::instance
