#include "services/engine/scheduler.h"

#include <algorithm>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/ops/attention.h"

namespace sluice::engine {
namespace {

constexpr int32_t kSampledTokens[1] = {kSampledToken};

// How many outputs the request has when its leg is over, at the latest.
int64_t OutputsMax(const Request& request) {
  return request.leg == Leg::kPrefill ? static_cast<int64_t>(request.output.size()) + 1
                                      : request.sampling.max_tokens;
}

}  // namespace

Scheduler::Entry::Entry(Request r, uint64_t arrival)
    : request(std::move(r)),
      key(request.priority, arrival),
      pages(std::move(request.page_hashes), request.page_hash_seed),
      tokens(request.prompt) {
  tokens.insert(tokens.end(), request.output.begin(), request.output.end());
}

Scheduler::Scheduler(const SchedulerOptions& options) : options_(options), pool_(options.kv_pages) {
  for (int64_t slot = options.slots_max - 1; slot >= 0; --slot) {
    free_slots_.push_back(static_cast<int32_t>(slot));
  }
}

// --- Requests coming and going ---

absl::Status Scheduler::Check(const Request& request) const {
  SLUICE_RETURN_IF_ERROR(ValidateRequest(request, options_.vocab_size, options_.positions_max));
  if (requests_.contains(request.id) || quarantined_.contains(request.id)) {
    return absl::InvalidArgumentError(absl::StrCat("request id ", request.id, " is in use"));
  }
  if (static_cast<int64_t>(requests_.size()) >= options_.requests_max) {
    return absl::ResourceExhaustedError(absl::StrCat(requests_.size(),
                                                     " requests wait or run, allowed are ",
                                                     options_.requests_max, "; try again later"));
  }
  const int64_t needed = PagesFor(PositionsLimit(request, options_.positions_max));
  if (needed > pool_.num_pages()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt and max_tokens need up to ", needed, " pages of KV, there are ", pool_.num_pages(),
        " of ", kPageTokens, " tokens; ask for fewer tokens or raise the KV cache"));
  }
  return absl::OkStatus();
}

Scheduler::Entry* Scheduler::Insert(Request request) {
  const uint64_t id = request.id;
  auto& entry = requests_[id];
  entry = std::make_unique<Entry>(std::move(request), next_arrival_++);
  return entry.get();
}

Scheduler::Entry* Scheduler::Find(uint64_t id) const {
  const auto it = requests_.find(id);
  return it == requests_.end() || it->second->state == State::kEnded ? nullptr : it->second.get();
}

absl::Status Scheduler::Add(Request request) {
  if (request.leg == Leg::kDecode) {
    return absl::InvalidArgumentError("a decode leg begins with Reserve");
  }
  SLUICE_RETURN_IF_ERROR(Check(request));
  waiting_.insert(Insert(std::move(request)));
  return absl::OkStatus();
}

absl::StatusOr<Reservation> Scheduler::Reserve(Request request) {
  if (request.leg != Leg::kDecode) {
    return absl::InvalidArgumentError("only a decode leg begins with Reserve");
  }
  SLUICE_RETURN_IF_ERROR(Check(request));
  const bool others_first =
      !waiting_.empty() && (*waiting_.begin())->request.priority <= request.priority;
  if (others_first || (first_short_.has_value() && first_short_->first <= request.priority)) {
    return absl::ResourceExhaustedError("requests that come first wait for pages or slots");
  }
  if (free_slots_.empty()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", options_.slots_max, " slots are taken"));
  }
  Entry* entry = Insert(std::move(request));
  const int64_t known = entry->num_tokens();
  if (!entry->pages.Acquire(&pool_, &hasher_, entry->tokens, known / kPageTokens, known + 1)) {
    requests_.erase(entry->request.id);
    return absl::ResourceExhaustedError(absl::StrCat(known, " tokens and the next need ",
                                                     PagesFor(known + 1), " pages of KV, free are ",
                                                     pool_.num_free()));
  }
  TakeSlot(entry);
  entry->state = State::kReserved;
  const std::vector<int32_t>& pages = entry->pages.pages();
  const int64_t first = entry->pages.num_cached();
  return Reservation{
      .first_page = first,
      .pages = {pages.begin() + first, pages.begin() + PagesFor(known)},
  };
}

absl::Status Scheduler::Start(uint64_t id, absl::Span<const int32_t> outputs) {
  Entry* entry = Find(id);
  if (entry == nullptr || entry->state != State::kReserved) {
    return absl::NotFoundError(absl::StrCat("nothing is reserved for request ", id));
  }
  SLUICE_RETURN_IF_ERROR(CheckTokens("outputs", outputs, options_.vocab_size));
  const int64_t added = static_cast<int64_t>(outputs.size());
  const int64_t known = entry->num_tokens();
  if (added == 0 || entry->num_outputs() + added >= entry->request.sampling.max_tokens ||
      known + added >= options_.positions_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        "request ", id, " starts with ", added, " outputs after ", known,
        " tokens; wanted is one at least, with room for another within max_tokens (",
        entry->request.sampling.max_tokens, ") and context (", options_.positions_max, ")"));
  }
  if (!entry->pages.Grow(&pool_, known + added)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(known + added, " tokens need ", PagesFor(known + added) - PagesFor(known + 1),
                     " more pages of KV, free are ", pool_.num_free()));
  }
  entry->pages.Offer(&pool_, &hasher_, entry->tokens, known);
  entry->scheduled = known;
  entry->tokens.insert(entry->tokens.end(), outputs.begin(), outputs.end());
  AddToRunning(entry);
  return absl::OkStatus();
}

absl::Status Scheduler::Cancel(uint64_t id, PageFate fate) {
  Entry* entry = Find(id);
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrCat("request ", id, " is not waiting or running"));
  }
  if (fate == PageFate::kQuarantine) {
    if (entry->state != State::kReserved) {
      return absl::InvalidArgumentError(
          absl::StrCat("request ", id, " has no reserved pages to put into quarantine"));
    }
    const int64_t cached = entry->pages.num_cached();
    std::vector<int32_t> pages = entry->pages.Take();
    pool_.Release(absl::MakeConstSpan(pages).first(cached));
    pages.erase(pages.begin(), pages.begin() + cached);
    pool_.Quarantine(pages);
    quarantined_.emplace(id, std::move(pages));
  }
  if (fate == PageFate::kHold && !entry->pages.pages().empty()) {
    Detach(entry);
    entry->state = State::kHeld;
    return absl::OkStatus();
  }
  End(entry);
  return absl::OkStatus();
}

void Scheduler::ReleaseHeld(uint64_t id) {
  Entry* entry = Find(id);
  if (entry != nullptr && entry->state == State::kHeld) End(entry);
}

void Scheduler::ReleaseQuarantined(uint64_t id) {
  const auto it = quarantined_.find(id);
  if (it == quarantined_.end()) return;
  pool_.EndQuarantine(it->second);
  quarantined_.erase(it);
}

void Scheduler::TakeSlot(Entry* entry) {
  entry->slot = free_slots_.back();
  entry->slot_is_new = true;
  free_slots_.pop_back();
  if (entry->placement == 0) {
    entry->cached_tokens = std::min(entry->pages.num_cached() * kPageTokens,
                                    static_cast<int64_t>(entry->request.prompt.size()));
  }
  entry->placement = next_placement_++;
}

void Scheduler::AddToRunning(Entry* entry) {
  entry->state = State::kRunning;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), entry, ComesFirst()), entry);
}

void Scheduler::Detach(Entry* entry) {
  if (entry->state == State::kWaiting) waiting_.erase(entry);
  if (entry->state == State::kRunning) {
    running_.erase(std::find(running_.begin(), running_.end(), entry));
  }
  if (entry->slot < 0) return;
  free_slots_.push_back(entry->slot);
  entry->slot = -1;
}

// Pages that a step in flight uses come back when it has been answered.
void Scheduler::ReleasePages(Entry* entry) {
  const bool in_use = !in_flight_.empty() && entry->last_step >= in_flight_.front().number;
  std::vector<int32_t> pages = entry->pages.Take();
  if (in_use) {
    deferred_.push_back({entry->last_step, std::move(pages)});
  } else {
    pool_.Release(pages);
  }
}

void Scheduler::End(Entry* entry) {
  Detach(entry);
  ReleasePages(entry);
  entry->state = State::kEnded;
  if (entry->pending == 0) requests_.erase(entry->request.id);
}

absl::Span<const int32_t> Scheduler::PagesOf(uint64_t id) const {
  const Entry* entry = Find(id);
  return entry == nullptr ? absl::Span<const int32_t>() : entry->pages.pages();
}

SchedulerLoad Scheduler::Load() const {
  SchedulerLoad load{.running = num_running(), .waiting = num_waiting()};
  for (const auto& [id, entry] : requests_) {
    load.reserved += entry->state == State::kReserved;
    load.held += entry->state == State::kHeld;
    if (entry->state == State::kWaiting ||
        (entry->state == State::kRunning && !entry->decoding())) {
      load.waiting_tokens += std::max<int64_t>(entry->num_tokens() - entry->scheduled, 0);
    }
  }
  return load;
}

// --- Planning ---

const StepPlan* Scheduler::NextPlan() {
  if (static_cast<int64_t>(in_flight_.size()) >= options_.steps_in_flight_max) return nullptr;
  chunks_.clear();
  resets_.clear();
  planned_.clear();
  plan_tokens_ = 0;
  first_short_.reset();
  in_flight_.push_back({.number = next_number_});
  PlanDecodes();
  PlanPrompts();
  if (chunks_.empty()) {
    in_flight_.pop_back();
    return nullptr;
  }
  plan_ = {.number = next_number_++, .resets = resets_, .chunks = chunks_};
  return &plan_;
}

// Whether a plan may move the request on before another result has come.
bool Scheduler::WantsChunk(const Entry& entry) const {
  const int64_t known = entry.num_tokens();
  if (entry.scheduled < known) return entry.pending == 0;
  // The next token was sampled in a step in flight: go on from it, unless it must be the last one.
  return entry.pending == 1 && entry.num_outputs() + 1 < OutputsMax(entry.request) &&
         known + 1 < options_.positions_max;
}

void Scheduler::PlanDecodes() {
  for (size_t i = 0; i < running_.size() && plan_tokens_ < options_.step_tokens_max;) {
    Entry* entry = running_[i];
    const Key key = entry->key;
    const bool wants = entry->decoding() && WantsChunk(*entry);
    const bool planned = wants && EnsurePages(entry, entry->scheduled + 1);
    if (planned) PlanChunk(entry);
    // Those who lost their pages came after this one, or it has been handed back itself.
    if (i == running_.size() || running_[i]->key != key) continue;
    if (wants && !planned && !first_short_.has_value()) first_short_ = key;
    ++i;
  }
}

// Prompts that have slots and requests that wait for one, together in their order.
void Scheduler::PlanPrompts() {
  prompts_.clear();
  for (Entry* entry : running_) {
    if (!entry->decoding() && WantsChunk(*entry)) prompts_.push_back(entry);
  }
  bool admitting = true;
  for (size_t next = 0; plan_tokens_ < options_.step_tokens_max;) {
    Entry* waiting = admitting && !waiting_.empty() ? *waiting_.begin() : nullptr;
    if (next < prompts_.size() && (waiting == nullptr || prompts_[next]->key < waiting->key)) {
      PlanChunk(prompts_[next++]);
    } else if (waiting != nullptr) {
      admitting = Admit(waiting);
      if (admitting) PlanChunk(waiting);
    } else {
      return;
    }
  }
}

// Gives the first of the waiting requests a slot and pages, if there are.
bool Scheduler::Admit(Entry* entry) {
  if (free_slots_.empty()) return false;
  if (entry->pending > 0) return false;  // preempted; its last token is still to come
  // Pages that come free belong to those who run and lack them.
  if (first_short_.has_value() && *first_short_ < entry->key) return false;
  const int64_t known = entry->num_tokens();
  if (!entry->pages.Acquire(&pool_, &hasher_, entry->tokens, (known - 1) / kPageTokens, known)) {
    return false;
  }
  waiting_.erase(entry);
  TakeSlot(entry);
  entry->scheduled = entry->pages.num_cached() * kPageTokens;
  AddToRunning(entry);
  return true;
}

// Makes the request's pages cover `positions`, at the cost of requests that come after it. False
// when it has to wait, or has been handed back itself.
bool Scheduler::EnsurePages(Entry* entry, int64_t positions) {
  while (!entry->pages.Grow(&pool_, positions)) {
    if (!deferred_.empty()) return false;  // some come with a step in flight
    Entry* victim = Victim(entry);
    if (victim == entry && !entry->request.may_hand_back) return false;
    Preempt(victim);
    if (victim == entry) return false;
  }
  return true;
}

Scheduler::Entry* Scheduler::Victim(Entry* needing) const {
  for (auto it = running_.rbegin(); *it != needing; ++it) {
    if ((*it)->request.leg != Leg::kPrefill) return *it;
  }
  return needing;
}

void Scheduler::Preempt(Entry* entry) {
  ++num_preemptions_;
  if (entry->request.may_hand_back) {
    handed_back_.push_back(entry->request.id);
    End(entry);
    return;
  }
  Detach(entry);
  ReleasePages(entry);
  entry->scheduled = 0;
  entry->state = State::kWaiting;
  waiting_.insert(entry);
}

void Scheduler::PlanChunk(Entry* entry) {
  const int64_t known = entry->num_tokens();
  const bool sampled = entry->scheduled >= known;  // the token lies on the device only
  const int64_t count =
      sampled ? 1 : std::min(known - entry->scheduled, options_.step_tokens_max - plan_tokens_);
  const absl::Span<const int32_t> tokens = entry->tokens;
  if (entry->slot_is_new && entry->request.sampling.has_penalties()) {
    resets_.push_back({.slot = entry->slot,
                       .prompt = tokens.first(entry->request.prompt.size()),
                       .output = tokens.subspan(entry->request.prompt.size())});
  }
  entry->slot_is_new = false;
  StepChunk chunk{.slot = entry->slot,
                  .first_position = entry->scheduled,
                  .tokens = sampled ? absl::MakeConstSpan(kSampledTokens)
                                    : tokens.subspan(entry->scheduled, count),
                  .pages = entry->pages.pages()};
  StepRecord& record = in_flight_.back();
  if (entry->scheduled + count >= known) {
    chunk.sampling = &entry->request.sampling;
    chunk.output_position = entry->num_outputs() + entry->pending;
    record.samples.push_back(entry->request.id);
    ++entry->pending;
  }
  planned_.push_back({entry->request.id, entry->scheduled, count});
  entry->scheduled += count;
  entry->last_step = next_number_;
  record.chunks.push_back({entry->request.id, entry->placement, entry->scheduled});
  plan_tokens_ += count;
  chunks_.push_back(chunk);
}

// --- Results ---

void Scheduler::OnResult(const StepResult& result, std::vector<TokenEvent>* events) {
  if (in_flight_.empty() || in_flight_.front().number != result.number ||
      in_flight_.front().samples.size() != result.slots.size()) {
    ABSL_RAW_LOG(FATAL, "result of step %llu does not answer the oldest plan",
                 static_cast<unsigned long long>(result.number));
  }
  const StepRecord record = std::move(in_flight_.front());
  in_flight_.pop_front();
  OfferComputed(record);
  for (size_t i = 0; i < record.samples.size(); ++i) {
    Entry* entry = requests_.at(record.samples[i]).get();
    --entry->pending;
    if (entry->state == State::kEnded && entry->pending == 0) {
      requests_.erase(record.samples[i]);
      continue;
    }
    if (entry->state != State::kRunning && entry->state != State::kWaiting) continue;
    for (const SampledToken& token : result.slots[i].tokens) {
      if (!OnToken(entry, token, events)) break;
    }
  }
  const auto done = [&](DeferredRelease& deferred) {
    if (deferred.step > record.number) return false;
    pool_.Release(deferred.pages);
    return true;
  };
  deferred_.erase(std::remove_if(deferred_.begin(), deferred_.end(), done), deferred_.end());
}

// A chunk whose request has since left the pages tells nothing about those it has now.
void Scheduler::OfferComputed(const StepRecord& record) {
  for (const StepRecord::Chunk& chunk : record.chunks) {
    Entry* entry = Find(chunk.request_id);
    if (entry == nullptr || entry->state != State::kRunning ||
        entry->placement != chunk.placement) {
      continue;
    }
    entry->pages.Offer(&pool_, &hasher_, entry->tokens, chunk.end);
  }
}

// False when the request, which may be gone then, takes no more.
bool Scheduler::OnToken(Entry* entry, const SampledToken& token, std::vector<TokenEvent>* events) {
  entry->tokens.push_back(token.token_id);
  const SamplingParams& sampling = entry->request.sampling;
  TokenEvent event{
      .request_id = entry->request.id, .token = token, .cached_tokens = entry->cached_tokens};
  if (token.not_finite) {
    event.finish = FinishReason::kDamaged;
    entry->pages.Disown(&pool_);
  } else if (std::find(sampling.stop_token_ids.begin(), sampling.stop_token_ids.end(),
                       token.token_id) != sampling.stop_token_ids.end()) {
    event.finish = FinishReason::kStop;
  } else if (entry->num_outputs() >= sampling.max_tokens ||
             entry->num_tokens() >= options_.positions_max) {
    event.finish = FinishReason::kLength;
  }
  const bool finished = event.finish.has_value();
  events->push_back(std::move(event));
  if (entry->request.leg == Leg::kPrefill) {
    Detach(entry);
    entry->state = State::kHeld;
    return false;
  }
  if (finished) End(entry);
  return !finished;
}

}  // namespace sluice::engine
