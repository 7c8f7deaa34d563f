#include "services/base/exit_deadline.h"

#include <cstdlib>

#include "services/base/log.h"

namespace sluice {

ExitDeadline::~ExitDeadline() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void ExitDeadline::Start(absl::Duration limit) {
  const std::lock_guard lock(mutex_);
  if (thread_.joinable()) return;
  thread_ = std::thread([this, limit] {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, absl::ToChronoNanoseconds(limit), [this] { return over_; })) return;
    LogError("something hangs: ending without it", {{"waited", limit}});
    StopLogging();
    std::_Exit(1);
  });
}

}  // namespace sluice
