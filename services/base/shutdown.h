// SIGTERM and Ctrl-C as something that a program can wait for.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/time/time.h"

namespace sluice {

// Make one in main() before any other thread is there: it blocks SIGTERM and SIGINT in the calling
// thread, from which later threads inherit that, and takes them on a thread of its own. The first
// one asks for an orderly end; a second one ends the process at once with status 128 + signal.
// SIGPIPE is ignored from then on. At most one at a time.
class ShutdownSignal {
 public:
  ShutdownSignal();
  ~ShutdownSignal();
  ShutdownSignal(const ShutdownSignal&) = delete;
  ShutdownSignal& operator=(const ShutdownSignal&) = delete;

  // `callback` is called once, at the first signal or Request(), on the thread where that happens;
  // at once when it has happened already. It must not block. One callback, set once.
  void OnRequested(std::function<void()> callback);
  // The callback is not called any more, and has returned if it was being called: what it uses may
  // go. Not to be called by the callback.
  void ForgetCallback();

  // The same as a first signal. Further calls do nothing.
  void Request();

  bool requested() const;
  void Wait() const;
  // Whether it was requested within that time.
  bool WaitFor(absl::Duration timeout) const;

 private:
  void Listen();

  // Not absl's: ThreadSanitizer cannot see into the packaged library.
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool requested_ = false;  // all three under the mutex
  bool calling_ = false;
  std::function<void()> callback_;
  int signal_fd_ = -1;
  int stop_fd_ = -1;
  std::thread thread_;
};

}  // namespace sluice
