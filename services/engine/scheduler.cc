#include "services/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/ops/attention.h"

namespace sluice::engine {
namespace {

constexpr int32_t kSampledTokens[1] = {kSampledToken};

absl::Status CheckTokens(const char* what, const std::vector<int32_t>& tokens, int64_t vocab_size) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab_size) continue;
    return absl::InvalidArgumentError(absl::StrCat(what, "[", i, "] is token id ", tokens[i],
                                                   ", the vocabulary has ids 0 to ",
                                                   vocab_size - 1));
  }
  return absl::OkStatus();
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options) : options_(options), pool_(options.kv_pages) {
  for (int64_t slot = options.slots_max - 1; slot >= 0; --slot) {
    free_slots_.push_back(static_cast<int32_t>(slot));
  }
}

// The most positions the request may come to occupy. Its last token needs none.
int64_t Scheduler::positions_limit(const Entry& entry) const {
  const int64_t prompt = static_cast<int64_t>(entry.request.prompt.size());
  const int64_t outputs =
      std::min(entry.request.sampling.max_tokens, options_.positions_max - prompt);
  return prompt + outputs - 1;
}

absl::Status Scheduler::Add(Request request) {
  const int64_t vocab = options_.vocab_size;
  SLUICE_RETURN_IF_ERROR(ValidateSamplingParams(request.sampling, vocab));
  if (request.prompt.empty()) return absl::InvalidArgumentError("prompt has no tokens");
  SLUICE_RETURN_IF_ERROR(CheckTokens("prompt", request.prompt, vocab));
  SLUICE_RETURN_IF_ERROR(CheckTokens("output", request.output, vocab));
  const int64_t length = static_cast<int64_t>(request.prompt.size() + request.output.size());
  if (length >= options_.positions_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt and outputs have ", length, " tokens, the context limit is ",
                     options_.positions_max, " and at least one must be left to generate"));
  }
  if (static_cast<int64_t>(request.output.size()) >= request.sampling.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("max_tokens is ", request.sampling.max_tokens,
                                                   ", and ", request.output.size(),
                                                   " outputs were sent already"));
  }
  if (requests_.contains(request.id)) {
    return absl::InvalidArgumentError(absl::StrCat("request id ", request.id, " is in use"));
  }
  if (static_cast<int64_t>(requests_.size()) >= options_.requests_max) {
    return absl::ResourceExhaustedError(absl::StrCat(requests_.size(),
                                                     " requests wait or run, allowed are ",
                                                     options_.requests_max, "; try again later"));
  }
  auto entry = std::make_unique<Entry>();
  entry->request = std::move(request);
  entry->tokens = entry->request.prompt;
  entry->tokens.insert(entry->tokens.end(), entry->request.output.begin(),
                       entry->request.output.end());
  if (const int64_t needed = PagesFor(positions_limit(*entry)); needed > pool_.num_pages()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt and max_tokens need up to ", needed, " pages of KV, there are ", pool_.num_pages(),
        " of ", kPageTokens, " tokens; ask for fewer tokens or raise the KV cache"));
  }
  waiting_.push_back(entry.get());
  requests_.emplace(entry->request.id, std::move(entry));
  return absl::OkStatus();
}

absl::Status Scheduler::Cancel(uint64_t id) {
  const auto it = requests_.find(id);
  if (it == requests_.end() || it->second->ended) {
    return absl::NotFoundError(absl::StrCat("request ", id, " is not waiting or running"));
  }
  End(it->second.get());
  return absl::OkStatus();
}

const StepPlan* Scheduler::NextPlan() {
  if (static_cast<int64_t>(in_flight_.size()) >= options_.steps_in_flight_max) return nullptr;
  chunks_.clear();
  resets_.clear();
  plan_tokens_ = 0;
  short_of_pages_ = false;
  in_flight_.push_back({.number = next_number_});
  // Preempt() takes requests out of running_ from the back, so the end is looked at anew each time.
  for (const bool decoding : {true, false}) {
    for (size_t i = 0; i < running_.size() && plan_tokens_ < options_.step_tokens_max; ++i) {
      Entry* entry = running_[i];
      if (entry->decoding() == decoding && WantsChunk(*entry)) PlanChunk(entry);
    }
  }
  // Pages that come free belong to those who run and lack them, not to newcomers.
  if (!short_of_pages_) AdmitWaiting();

  if (chunks_.empty()) {
    in_flight_.pop_back();
    return nullptr;
  }
  plan_ = {.number = next_number_++, .resets = resets_, .chunks = chunks_};
  return &plan_;
}

// Whether a plan may move the request on before another result has come.
bool Scheduler::WantsChunk(const Entry& entry) const {
  if (entry.last_step == next_number_) return false;  // has a chunk in this plan
  const int64_t known = static_cast<int64_t>(entry.tokens.size());
  if (entry.scheduled < known) return entry.pending == 0;
  // The next token was sampled in a step in flight: go on from it, unless it must be the last one.
  return entry.scheduled == known && entry.pending == 1 &&
         entry.num_outputs() + 1 < entry.request.sampling.max_tokens &&
         known + 1 < options_.positions_max;
}

void Scheduler::AdmitWaiting() {
  while (!waiting_.empty() && !free_slots_.empty() && plan_tokens_ < options_.step_tokens_max) {
    Entry* entry = waiting_.front();
    if (entry->pending > 0) return;  // preempted; its last token is still to come
    // Room for all that is known, not for the first chunk alone: else a preempted request would
    // come back only to be preempted again.
    if (pool_.num_free() < PagesFor(static_cast<int64_t>(entry->tokens.size()))) return;
    waiting_.pop_front();
    entry->slot = free_slots_.back();
    free_slots_.pop_back();
    running_.push_back(entry);
    if (entry->request.sampling.has_penalties()) {
      const absl::Span<const int32_t> tokens = entry->tokens;
      resets_.push_back({.slot = entry->slot,
                         .prompt = tokens.subspan(0, entry->request.prompt.size()),
                         .output = tokens.subspan(entry->request.prompt.size())});
    }
    PlanChunk(entry);
  }
}

void Scheduler::PlanChunk(Entry* entry) {
  const int64_t known = static_cast<int64_t>(entry->tokens.size());
  const bool sampled = entry->scheduled >= known;  // the token lies on the device only
  int64_t count =
      sampled ? 1 : std::min(known - entry->scheduled, options_.step_tokens_max - plan_tokens_);
  // A long chunk makes do with the pages there are.
  const int64_t covered =
      (static_cast<int64_t>(entry->pages.size()) + pool_.num_free()) * kPageTokens;
  if (covered > entry->scheduled) count = std::min(count, covered - entry->scheduled);
  if (!EnsurePages(entry, entry->scheduled + count)) {
    short_of_pages_ = true;
    return;
  }
  StepChunk chunk{
      .slot = entry->slot,
      .first_position = entry->scheduled,
      .tokens = sampled ? absl::MakeConstSpan(kSampledTokens)
                        : absl::MakeConstSpan(entry->tokens).subspan(entry->scheduled, count),
      .pages = entry->pages};
  if (entry->scheduled + count >= known) {
    chunk.sampling = &entry->request.sampling;
    chunk.output_position = entry->num_outputs() + entry->pending;
    in_flight_.back().samples.push_back(entry->request.id);
    ++entry->pending;
  }
  entry->scheduled += count;
  entry->last_step = next_number_;
  plan_tokens_ += count;
  chunks_.push_back(chunk);
}

// Makes the request's pages cover `positions`, at the cost of requests admitted after it. False
// when it has to wait: for pages of a step in flight, or for requests admitted before it.
bool Scheduler::EnsurePages(Entry* entry, int64_t positions) {
  while (true) {
    const int64_t missing = PagesFor(positions) - static_cast<int64_t>(entry->pages.size());
    if (missing <= 0 || pool_.Allocate(missing, &entry->pages)) return true;
    if (!deferred_.empty()) return false;
    Entry* victim = running_.back();
    if (victim == entry || victim->last_step == next_number_) return false;
    Preempt(victim);
  }
}

void Scheduler::Preempt(Entry* entry) {
  ++num_preemptions_;
  Release(entry);
  entry->scheduled = 0;
  waiting_.push_front(entry);
}

// Takes slot and pages away; pages that a step in flight uses come back when it has been answered.
void Scheduler::Release(Entry* entry) {
  const auto it = std::find(running_.begin(), running_.end(), entry);
  if (it == running_.end()) return;
  running_.erase(it);
  free_slots_.push_back(entry->slot);
  entry->slot = -1;
  const bool in_use = !in_flight_.empty() && entry->last_step >= in_flight_.front().number;
  if (in_use) {
    deferred_.push_back({entry->last_step, std::move(entry->pages)});
  } else {
    pool_.Free(entry->pages);
  }
  entry->pages.clear();
}

void Scheduler::End(Entry* entry) {
  Release(entry);
  if (const auto it = std::find(waiting_.begin(), waiting_.end(), entry); it != waiting_.end()) {
    waiting_.erase(it);
  }
  entry->ended = true;
  if (entry->pending == 0) requests_.erase(entry->request.id);
}

void Scheduler::OnResult(const StepResult& result, std::vector<TokenEvent>* events) {
  if (in_flight_.empty() || in_flight_.front().number != result.number ||
      in_flight_.front().samples.size() != result.slots.size()) {
    ABSL_RAW_LOG(FATAL, "result of step %llu does not answer the oldest plan",
                 static_cast<unsigned long long>(result.number));
  }
  const StepRecord record = std::move(in_flight_.front());
  in_flight_.pop_front();
  for (size_t i = 0; i < record.samples.size(); ++i) {
    Entry* entry = requests_.at(record.samples[i]).get();
    --entry->pending;
    if (entry->ended) {
      if (entry->pending == 0) requests_.erase(record.samples[i]);
      continue;
    }
    for (const SampledToken& token : result.slots[i].tokens) {
      OnToken(entry, token, events);
      if (events->back().finish.has_value()) break;
    }
  }
  const auto done = [&](DeferredFree& deferred) {
    if (deferred.step > record.number) return false;
    pool_.Free(deferred.pages);
    return true;
  };
  deferred_.erase(std::remove_if(deferred_.begin(), deferred_.end(), done), deferred_.end());
}

void Scheduler::OnToken(Entry* entry, const SampledToken& token, std::vector<TokenEvent>* events) {
  entry->tokens.push_back(token.token_id);
  const SamplingParams& sampling = entry->request.sampling;
  TokenEvent event{.request_id = entry->request.id, .token = token};
  if (token.not_finite) {
    event.finish = FinishReason::kDamaged;
  } else if (std::find(sampling.stop_token_ids.begin(), sampling.stop_token_ids.end(),
                       token.token_id) != sampling.stop_token_ids.end()) {
    event.finish = FinishReason::kStop;
  } else if (entry->num_outputs() >= sampling.max_tokens ||
             static_cast<int64_t>(entry->tokens.size()) >= options_.positions_max) {
    event.finish = FinishReason::kLength;
  }
  events->push_back(std::move(event));
  if (events->back().finish.has_value()) End(entry);
}

}  // namespace sluice::engine
