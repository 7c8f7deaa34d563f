#include "services/router/admission.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/router/retry_hint.h"

namespace sluice::router {
namespace {

constexpr absl::Duration kRateWindow = absl::Seconds(10);
constexpr absl::Duration kRetryMin = absl::Seconds(1);
constexpr absl::Duration kRetryMax = absl::Seconds(60);

double Decay(absl::Time from, absl::Time to) {
  return std::exp(-absl::FDivDuration(std::max(to - from, absl::ZeroDuration()), kRateWindow));
}

}  // namespace

uint32_t ClassOf(uint32_t priority) { return std::min(priority, kClasses - 1); }

void RateMeter::Add(double amount, absl::Time now) {
  sum_ = sum_ * Decay(at_, now) + amount;
  at_ = now;
}

double RateMeter::PerSecond(absl::Time now) const {
  return sum_ * Decay(at_, now) / absl::ToDoubleSeconds(kRateWindow);
}

AdmissionQueue::AdmissionQueue(int64_t requests_max, int64_t tokens_max)
    : requests_max_(requests_max), tokens_max_(tokens_max) {}

absl::Status AdmissionQueue::CheckRoom(uint32_t priority, int64_t tokens, absl::Time now) const {
  const uint32_t klass = ClassOf(priority);
  const Class& c = classes_[klass];
  const int64_t requests = static_cast<int64_t>(c.queue.size());
  if (requests + 1 > requests_max_) {
    return WithRetryAfter(absl::ResourceExhaustedError(
                              absl::StrCat("the queue of class ", klass, " is full: ", requests,
                                           " requests wait, the limit is ", requests_max_)),
                          RetryAfterOf(klass, now));
  }
  if (requests > 0 && c.tokens + tokens > tokens_max_) {
    return WithRetryAfter(absl::ResourceExhaustedError(
                              absl::StrCat("the queue of class ", klass, " is full: ", c.tokens,
                                           " prompt tokens wait, with this request's ", tokens,
                                           " more than the limit of ", tokens_max_)),
                          RetryAfterOf(klass, now));
  }
  return absl::OkStatus();
}

void AdmissionQueue::Push(const Waiting& waiting) {
  Class& c = classes_[ClassOf(waiting.priority)];
  if (c.queue.emplace(std::make_pair(waiting.arrival, waiting.id), waiting).second)
    c.tokens += waiting.tokens;
}

void AdmissionQueue::Erase(const Waiting& waiting) {
  Class& c = classes_[ClassOf(waiting.priority)];
  if (c.queue.erase(std::make_pair(waiting.arrival, waiting.id)) > 0) c.tokens -= waiting.tokens;
}

std::optional<Waiting> AdmissionQueue::Next(absl::Time now) const {
  std::optional<Waiting> next;
  double next_class = 0;
  for (uint32_t klass = 0; klass < kClasses; ++klass) {
    if (classes_[klass].queue.empty()) continue;
    const Waiting& first = classes_[klass].queue.begin()->second;
    const double aged = klass - absl::FDivDuration(now - first.arrival, kAgeing);
    if (next && aged >= next_class) continue;
    next = first;
    next_class = aged;
  }
  return next;
}

void AdmissionQueue::CountPlaced(int64_t tokens, absl::Time now) {
  placed_requests_.Add(1, now);
  placed_tokens_.Add(static_cast<double>(tokens), now);
}

int64_t AdmissionQueue::size() const {
  int64_t size = 0;
  for (const Class& c : classes_) size += static_cast<int64_t>(c.queue.size());
  return size;
}

int64_t AdmissionQueue::tokens() const {
  int64_t tokens = 0;
  for (const Class& c : classes_) tokens += c.tokens;
  return tokens;
}

absl::Duration AdmissionQueue::RetryAfterOf(uint32_t klass, absl::Time now) const {
  return std::clamp(WaitOf(klass, now), kRetryMin, kRetryMax);
}

// To place what stands before it.
absl::Duration AdmissionQueue::WaitOf(uint32_t priority, absl::Time now) const {
  double requests = 0;
  double tokens = 0;
  for (uint32_t i = 0; i <= ClassOf(priority); ++i) {
    requests += static_cast<double>(classes_[i].queue.size());
    tokens += static_cast<double>(classes_[i].tokens);
  }
  const double request_rate = placed_requests_.PerSecond(now);
  const double token_rate = placed_tokens_.PerSecond(now);
  if (request_rate <= 0 || token_rate <= 0) return absl::ZeroDuration();
  return absl::Seconds(std::max(requests / request_rate, tokens / token_rate));
}

}  // namespace sluice::router
