#include "services/base/exit_deadline.h"

#include <chrono>
#include <cstdlib>
#include <future>

#include "services/base/log.h"

namespace sluice {
namespace {

constexpr std::chrono::milliseconds kLogMax{500};  // for writing the log out

}  // namespace

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
  const auto at = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(limit);
  if (thread_.joinable()) {
    if (at >= at_) return;
    limit_ = limit;
    at_ = at;
    changed_.notify_all();
    return;
  }
  limit_ = limit;
  at_ = at;
  thread_ = std::thread([this] {
    std::unique_lock lock(mutex_);
    while (!over_ && std::chrono::steady_clock::now() < at_) changed_.wait_until(lock, at_);
    if (over_) return;
    const absl::Duration limit = limit_;
    // Whoever reads the log may be what hangs.
    std::promise<void> written;
    std::thread([&] {
      LogError("something hangs: ending without it", {{"waited", limit}});
      StopLogging();
      written.set_value();
    }).detach();
    written.get_future().wait_for(kLogMax);
    std::_Exit(1);
  });
}

}  // namespace sluice
