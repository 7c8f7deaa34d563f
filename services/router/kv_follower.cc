#include "services/router/kv_follower.h"

namespace sluice::router {

KvFollower::~KvFollower() {
  if (slot_) index_->RemoveWorker(*slot_);
}

KvEventsResult KvFollower::Apply(const sluice::v1::KvEvents& events) {
  if (events.snapshot()) {
    // A fresh slot knows nothing: the old picture goes as a whole.
    if (slot_) index_->RemoveWorker(*slot_);
    slot_ = index_->AddWorker();
    waiting_ = false;
  } else if (waiting_) {
    return KvEventsResult::kWaiting;
  } else if (next_sequence_ != events.sequence()) {
    waiting_ = true;
    return KvEventsResult::kGap;
  }
  next_sequence_ = events.sequence() + 1;
  if (slot_) {
    index_->Remove(*slot_, events.removed_hashes());
    index_->Store(*slot_, events.stored_hashes());
  }
  return events.snapshot() ? KvEventsResult::kSnapshot : KvEventsResult::kApplied;
}

}  // namespace sluice::router
