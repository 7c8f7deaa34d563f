// Runs programs as children: passes on what they print, starts the dead ones again, ends them all.
//
// Children stay in the session of their parent, each in a process group of its own, so that a
// Ctrl-C at the terminal reaches the parent alone. They are killed when the parent dies, however it
// dies.
//
// One thread: all calls from the thread that made the supervisor, which must not end before the
// children.
#pragma once

#include <sys/types.h>

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/base/clock.h"

namespace sluice::cli {

struct ChildSpec {
  std::string name;                    // "prefill-1"
  std::vector<std::string> arguments;  // the program's path first
};

struct SupervisorOptions {
  // Between a death and the next start: doubles from the one to the other while a child keeps dying
  // sooner than `stable` after its start.
  absl::Duration backoff_min = absl::Milliseconds(100);
  absl::Duration backoff_max = absl::Seconds(10);
  absl::Duration stable = absl::Seconds(30);
};

// A file descriptor that becomes readable when the process ends; to be closed. A signal such as
// SIGCHLD would do less: threads that do not block it swallow it. -1, and errno, when there is
// none.
int OpenPidFd(pid_t pid);

class Supervisor {
 public:
  // A child that has died so often in a row, each time but for the last sooner than `stable`.
  struct Failing {
    std::string name, how;  // "exited with status 1"
    int status = 0;         // of its last exit; -1: a signal killed it
    int deaths = 0;
  };

  // `on_line`: a line that a child has printed, without its end; long ones come in parts.
  using OnLine = std::function<void(const std::string& child, absl::string_view line)>;

  // `is_last`: whether this death is one after which the child is not to be started again.
  using IsLast = std::function<bool(const Failing& failing)>;

  // `clock` outlives it.
  Supervisor(SupervisorOptions options, const Clock* clock, OnLine on_line, IsLast is_last);
  // Kills what still runs.
  ~Supervisor();

  // Starts a child, and again whenever it dies, until Stop() is called for it or `is_last` says so.
  // Unavailable when it cannot be started at all.
  absl::Status Start(ChildSpec spec);

  // Passes on output, notices deaths, restarts what is due; returns after `timeout` or a second, or
  // as soon as something happened; one of `wake_fds` (-1: none) becoming readable is such a thing.
  void Poll(absl::Duration timeout, std::initializer_list<int> wake_fds);

  // SIGTERM, or SIGKILL, to those children whose name passes; they are not started again.
  void Stop(const std::function<bool(const std::string& name)>& which, int signal);
  // How many of them run still.
  size_t Running(const std::function<bool(const std::string& name)>& which) const;

  // Those that have died, most often first.
  std::vector<Failing> Failures() const;

 private:
  struct Child {
    ChildSpec spec;
    pid_t pid = 0;    // 0: not running
    int pid_fd = -1;  // readable once it has ended
    int output = -1;
    std::string partial_line;
    bool stopping = false;
    absl::Time started;
    absl::Time restart_at = absl::InfiniteFuture();
    int early_deaths = 0;
    int status = 0;
    std::string how;
  };

  absl::Status Launch(Child* child);
  void Reap();
  void ReadOutput(Child* child);
  void CloseOutput(Child* child);
  void OnDeath(Child* child, int status);

  const SupervisorOptions options_;
  const Clock& clock_;
  const OnLine on_line_;
  const IsLast is_last_;
  std::vector<Child> children_;
};

}  // namespace sluice::cli
