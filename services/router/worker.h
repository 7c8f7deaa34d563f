// One attached worker as the router knows it: what it said of itself, whether it is alive, and how
// much of it is taken, between its reports too.
//
// Liveness: dead without a heartbeat for kHeartbeatMax, wedged when its progress stands still for
// kProgressMax, or for 10 of its longest steps if that is more. Both pass when it moves again.
//
// Load: a report is as old as a heartbeat; this router knows better what it placed and what ended
// since. So it keeps the sum of its own requests' shares, and adds to the report what that sum has
// changed by since the report came.
//
// Threads: one.
#pragma once

#include <cstdint>

#include "absl/container/btree_set.h"
#include "absl/time/time.h"
#include "services/router/generation.h"
#include "services/router/kv_follower.h"
#include "services/router/placement.h"
#include "services/router/router_core.h"
#include "sluice/v1/control.pb.h"

namespace sluice::router {

inline constexpr absl::Duration kHeartbeatMax = absl::Seconds(1);
inline constexpr absl::Duration kProgressMax = absl::Seconds(2);

// What an attempt is thought to take of a worker.
struct Share {
  int64_t requests = 0;
  int64_t pages = 0;
  int64_t tokens = 0;  // of the prompt, not computed yet

  void Add(const Share& other, int64_t sign);
};

class Worker {
 public:
  Worker(WorkerId id, const sluice::v1::Hello& hello, PrefixIndex* index, absl::Time now);

  WorkerId id() const { return id_; }
  const sluice::v1::Hello& hello() const { return hello_; }
  const sluice::v1::Load& load() const { return heartbeat_.load(); }
  InstanceState state() const { return state_; }
  bool placeable() const { return state_ == InstanceState::kReady; }
  // Dead or wedged.
  bool broken() const { return state_ == InstanceState::kDead || state_ == InstanceState::kWedged; }
  bool broken_logged = false;  // since it last was not
  KvFollower& kv() { return kv_; }

  void OnHeartbeat(const sluice::v1::Heartbeat& heartbeat, absl::Time now);
  // Its state may have become another by the mere passing of time.
  void CheckLiveness(absl::Time now);
  // The router itself stood still: nobody's silence counts for that long.
  void Forgive(absl::Duration pause);
  // It refused for want of room, or is leaving: nothing for it until the next heartbeat.
  void CloseUntilHeartbeat() { closed_ = true; }
  void SetDraining();
  void SetDead() { state_ = InstanceState::kDead; }

  void Take(RequestId request, const Share& share);
  // What it has computed of the share by now.
  void Computed(int64_t tokens) { own_.tokens -= tokens; }
  void Release(RequestId request, const Share& share);
  const absl::btree_set<RequestId>& requests() const { return requests_; }

  // Without what depends on the request: cached_pages, failed_before.
  Candidate Describe() const;

 private:
  const WorkerId id_;
  const sluice::v1::Hello hello_;
  KvFollower kv_;
  sluice::v1::Heartbeat heartbeat_;
  absl::Time last_heartbeat_;
  absl::Time last_progress_;
  bool was_ready_ = false;  // has stepped: standing still means something
  InstanceState state_ = InstanceState::kLoading;
  bool closed_ = false;
  Share own_;
  Share own_at_heartbeat_;
  int64_t placements_ = 0;
  absl::btree_set<RequestId> requests_;
};

}  // namespace sluice::router
