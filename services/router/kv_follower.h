// Follows what one worker says about its prefix cache, and keeps the index to it.
//
// A worker begins with a snapshot. When it does not, and after a gap in the sequence numbers, what
// is known stays as it is and later events are left alone until the snapshot that the caller asks
// for has come.
//
// Threads: one. The index outlives it.
#pragma once

#include <cstdint>
#include <optional>

#include "services/router/prefix_index.h"
#include "sluice/v1/control.pb.h"

namespace sluice::router {

enum class KvEventsResult { kApplied, kSnapshot, kGap, kWaiting };

class KvFollower {
 public:
  explicit KvFollower(PrefixIndex* index) : index_(index), slot_(index->AddWorker()) {}
  ~KvFollower();
  KvFollower(const KvFollower&) = delete;
  KvFollower& operator=(const KvFollower&) = delete;

  // kGap: to be answered with RequestKvSnapshot, once for each gap. kWaiting: for that answer.
  KvEventsResult Apply(const sluice::v1::KvEvents& events);

  // Where Match tells of this worker; nothing when the index has no slot left for it.
  std::optional<int> slot() const { return slot_; }

 private:
  PrefixIndex* const index_;
  std::optional<int> slot_;
  bool waiting_ = false;                   // for a snapshot
  std::optional<uint64_t> next_sequence_;  // nothing before the first snapshot
};

}  // namespace sluice::router
