#include "services/base/shutdown.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <utility>

namespace sluice {
namespace {

sigset_t EndSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

ShutdownSignal::ShutdownSignal() {
  std::signal(SIGPIPE, SIG_IGN);
  const sigset_t set = EndSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC);
  stop_fd_ = eventfd(0, EFD_CLOEXEC);
  if (signal_fd_ < 0 || stop_fd_ < 0) std::abort();  // no file descriptor left at the very start
  thread_ = std::thread([this] { Listen(); });
}

ShutdownSignal::~ShutdownSignal() {
  const uint64_t one = 1;
  if (write(stop_fd_, &one, sizeof one) != sizeof one) std::abort();
  thread_.join();
  close(signal_fd_);
  close(stop_fd_);
  const sigset_t set = EndSignals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void ShutdownSignal::Listen() {
  bool had_one = false;
  while (true) {
    pollfd fds[] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) continue;
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof info) != sizeof info) continue;
    if (had_one) _exit(128 + static_cast<int>(info.ssi_signo));
    had_one = true;
    Request();
  }
}

void ShutdownSignal::OnRequested(std::function<void()> callback) {
  {
    const std::lock_guard lock(mutex_);
    if (!requested_) {
      callback_ = std::move(callback);
      return;
    }
  }
  callback();
}

void ShutdownSignal::Request() {
  std::function<void()> callback;
  {
    const std::lock_guard lock(mutex_);
    if (requested_) return;
    requested_ = true;
    callback = std::exchange(callback_, nullptr);
    calling_ = callback != nullptr;
  }
  changed_.notify_all();
  if (callback == nullptr) return;
  callback();
  const std::lock_guard lock(mutex_);
  calling_ = false;
  changed_.notify_all();  // under the lock: whoever waits may destroy this object next
}

void ShutdownSignal::ForgetCallback() {
  std::unique_lock lock(mutex_);
  callback_ = nullptr;
  changed_.wait(lock, [this] { return !calling_; });
}

bool ShutdownSignal::requested() const {
  const std::lock_guard lock(mutex_);
  return requested_;
}

void ShutdownSignal::Wait() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return requested_; });
}

bool ShutdownSignal::WaitFor(absl::Duration timeout) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, absl::ToChronoNanoseconds(timeout), [this] { return requested_; });
}

}  // namespace sluice
