// The requests that wait for a place, and who is next.
//
// Each class has a queue of its own with bounds of its own, so that a flood of one class cannot
// keep the others out. The next request is the one with the lowest class, where every kAgeing of
// waiting counts as one class: nobody starves. Within a class, whoever came first; a request that
// is placed anew keeps its first arrival.
//
// Threads: one. Pure.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/router/generation.h"

namespace sluice::router {

inline constexpr uint32_t kClasses = 8;  // 0 first; higher numbers count as the last
uint32_t ClassOf(uint32_t priority);
inline constexpr absl::Duration kAgeing = absl::Seconds(5);

// Events per second over the last ten seconds or so: an exponential mean.
class RateMeter {
 public:
  void Add(double amount, absl::Time now);
  double PerSecond(absl::Time now) const;

 private:
  double sum_ = 0;  // decayed to `at_`
  absl::Time at_ = absl::InfinitePast();
};

// What requests of a class should get; zero: whatever comes.
struct ClassTargets {
  absl::Duration ttft;  // time to the first token
  absl::Duration tpot;  // time per token after it
};

struct Waiting {
  RequestId id = 0;
  uint32_t priority = 0;
  int64_t tokens = 0;  // of the prompt
  absl::Time arrival;
};

class AdmissionQueue {
 public:
  // Bounds of each class, > 0.
  AdmissionQueue(int64_t requests_max, int64_t tokens_max);

  // Whether a new request may wait: ResourceExhausted with RetryAfter if not. A prompt longer than
  // the bound on tokens may, if it is alone in its class.
  absl::Status CheckRoom(uint32_t priority, int64_t tokens, absl::Time now) const;
  // Takes it in any case: what was accepted once is not refused when it is placed anew.
  void Push(const Waiting& waiting);
  void Erase(const Waiting& waiting);
  std::optional<Waiting> Next(absl::Time now) const;
  // How long a newcomer of the class would wait, by the measured pace; zero while that is unknown.
  absl::Duration WaitOf(uint32_t priority, absl::Time now) const;
  // Somebody got a place: what hints are measured by.
  void CountPlaced(int64_t tokens, absl::Time now);

  bool empty() const { return size() == 0; }
  int64_t size() const;
  int64_t tokens() const;

 private:
  struct Class {
    absl::btree_map<std::pair<absl::Time, RequestId>, Waiting> queue;
    int64_t tokens = 0;
  };

  absl::Duration RetryAfterOf(uint32_t klass, absl::Time now) const;

  const int64_t requests_max_;
  const int64_t tokens_max_;
  std::array<Class, kClasses> classes_;
  RateMeter placed_requests_;
  RateMeter placed_tokens_;
};

}  // namespace sluice::router
