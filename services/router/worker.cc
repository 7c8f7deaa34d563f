#include "services/router/worker.h"

#include <algorithm>

namespace sluice::router {

void Share::Add(const Share& other, int64_t sign) {
  requests += sign * other.requests;
  pages += sign * other.pages;
  tokens += sign * other.tokens;
}

Worker::Worker(WorkerId id, const sluice::v1::Hello& hello, PrefixIndex* index, absl::Time now)
    : id_(id), hello_(hello), kv_(index), last_heartbeat_(now), last_progress_(now) {}

void Worker::OnHeartbeat(const sluice::v1::Heartbeat& heartbeat, absl::Time now) {
  if (heartbeat.progress() != heartbeat_.progress() || !was_ready_) last_progress_ = now;
  heartbeat_ = heartbeat;
  last_heartbeat_ = now;
  was_ready_ |= heartbeat.ready();
  closed_ = false;
  own_at_heartbeat_ = own_;
  CheckLiveness(now);
}

void Worker::CheckLiveness(absl::Time now) {
  const absl::Duration progress_max =
      std::max(kProgressMax, 10 * absl::Milliseconds(heartbeat_.longest_step_ms()));
  if (now - last_heartbeat_ > kHeartbeatMax) {
    state_ = InstanceState::kDead;
  } else if (was_ready_ && now - last_progress_ > progress_max) {
    state_ = InstanceState::kWedged;
  } else if (heartbeat_.draining()) {
    state_ = InstanceState::kDraining;
  } else {
    state_ = heartbeat_.ready() ? InstanceState::kReady : InstanceState::kLoading;
  }
}

void Worker::Forgive(absl::Duration pause) {
  last_heartbeat_ += pause;
  last_progress_ += pause;
}

void Worker::SetDraining() {
  heartbeat_.set_draining(true);
  if (state_ == InstanceState::kReady) state_ = InstanceState::kDraining;
}

void Worker::Take(RequestId request, const Share& share) {
  requests_.insert(request);
  own_.Add(share, 1);
  ++placements_;
}

void Worker::Release(RequestId request, const Share& share) {
  requests_.erase(request);
  own_.Add(share, -1);
}

Candidate Worker::Describe() const {
  const sluice::v1::Capacity& capacity = hello_.capacity();
  const sluice::v1::Load& load = heartbeat_.load();
  Share since = own_;
  since.Add(own_at_heartbeat_, -1);
  const auto sum = [](int64_t reported, int64_t change) {
    return std::max<int64_t>(0, reported + change);
  };
  Candidate c;
  c.role = hello_.role();
  c.kv_layout = hello_.kv_layout_hash();
  c.slots = capacity.slots();
  // A report may have been under way when they were placed.
  c.requests = std::max(own_.requests, int64_t{load.running()} + load.waiting() + since.requests);
  c.positions = capacity.positions();
  c.kv_pages = static_cast<int64_t>(capacity.kv_pages());
  c.kv_pages_free =
      std::min(c.kv_pages, sum(static_cast<int64_t>(load.kv_pages_free()), -since.pages));
  c.step_tokens = capacity.step_tokens();
  c.waiting_tokens = sum(static_cast<int64_t>(load.waiting_tokens()), since.tokens);
  c.tokens_per_second = load.prompt_speed();
  c.step_seconds = load.step_seconds();
  c.placements = placements_;
  c.full = closed_;
  return c;
}

}  // namespace sluice::router
