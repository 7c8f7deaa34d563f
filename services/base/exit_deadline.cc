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
  if (thread_.joinable()) return;
  thread_ = std::thread([this, limit] {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, absl::ToChronoNanoseconds(limit), [this] { return over_; })) return;
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
