#include "tools/sluice/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/base/log.h"

namespace sluice::cli {
namespace {

constexpr size_t kLineBytesMax = 64 << 10;

// What happens in the child between fork and exec: system calls alone.
[[noreturn]] void BecomeChild(pid_t parent, int output, char* const* argv) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // it died before we asked to be told
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  std::signal(SIGPIPE, SIG_DFL);
  const int nothing = open("/dev/null", O_RDONLY);
  dup2(nothing, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  execv(argv[0], argv);
  for (const char* text : {static_cast<const char*>(argv[0]), ": cannot be run\n"}) {
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, std::strlen(text));
  }
  _exit(127);
}

std::string HowItEnded(int status) {
  if (WIFSIGNALED(status)) {
    return absl::StrCat("killed by signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)),
                        ")");
  }
  return absl::StrCat("exited with status ", WEXITSTATUS(status));
}

}  // namespace

int OpenPidFd(pid_t pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

Supervisor::Supervisor(SupervisorOptions options, const Clock* clock, OnLine on_line,
                       IsLast is_last)
    : options_(options),
      clock_(*clock),
      on_line_(std::move(on_line)),
      is_last_(std::move(is_last)) {}

Supervisor::~Supervisor() {
  for (Child& child : children_) {
    if (child.pid > 0) {
      kill(child.pid, SIGKILL);
      waitpid(child.pid, nullptr, 0);
      close(child.pid_fd);
    }
    if (child.output >= 0) close(child.output);
  }
}

absl::Status Supervisor::Start(ChildSpec spec) {
  if (access(spec.arguments[0].c_str(), X_OK) != 0) {
    return absl::UnavailableError(
        absl::StrCat(spec.arguments[0], ": cannot be run: ", std::strerror(errno)));
  }
  children_.push_back({.spec = std::move(spec)});
  return Launch(&children_.back());
}

absl::Status Supervisor::Launch(Child* child) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::UnavailableError(absl::StrCat("no pipe: ", std::strerror(errno)));
  }
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  std::vector<char*> argv;
  for (std::string& argument : child->spec.arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) BecomeChild(parent, ends[1], argv.data());
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return absl::UnavailableError(absl::StrCat("cannot fork: ", std::strerror(errno)));
  }
  child->pid = pid;
  child->pid_fd = OpenPidFd(pid);
  child->output = ends[0];
  child->started = clock_.Now();
  child->restart_at = absl::InfiniteFuture();
  LogInfo("started", {{"child", child->spec.name}, {"pid", pid}});
  return absl::OkStatus();
}

void Supervisor::Poll(absl::Duration timeout, std::initializer_list<int> wake_fds) {
  absl::Time until = clock_.Now() + timeout;
  for (const Child& child : children_) until = std::min(until, child.restart_at);
  std::vector<pollfd> fds;
  for (const Child& child : children_) {
    fds.push_back({child.output, POLLIN, 0});
    fds.push_back({child.pid_fd, POLLIN, 0});
  }
  for (const int fd : wake_fds) fds.push_back({fd, POLLIN, 0});
  const int64_t wait_ms = std::max<int64_t>(
      0, absl::ToInt64Milliseconds(until - clock_.Now() + absl::Microseconds(999)));
  poll(fds.data(), fds.size(), static_cast<int>(std::min<int64_t>(wait_ms, 1'000)));
  for (size_t i = 0; i < children_.size(); ++i) {
    if (fds[2 * i].revents != 0) ReadOutput(&children_[i]);
  }
  Reap();
  for (Child& child : children_) {
    if (child.pid != 0 || child.stopping || clock_.Now() < child.restart_at) continue;
    if (const absl::Status status = Launch(&child); !status.ok()) {
      LogError("cannot start", {{"child", child.spec.name}, {"reason", status}});
      child.restart_at = clock_.Now() + options_.backoff_max;
    }
  }
}

void Supervisor::ReadOutput(Child* child) {
  std::array<char, 16384> buffer;
  // A child that prints without end must not keep the others waiting.
  for (int turn = 0; turn < 16; ++turn) {
    const ssize_t got = read(child->output, buffer.data(), buffer.size());
    if (got <= 0) {
      if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        CloseOutput(child);
      }
      return;
    }
    for (const char c : absl::string_view(buffer.data(), static_cast<size_t>(got))) {
      if (c != '\n') child->partial_line.push_back(c);
      if (c == '\n' || child->partial_line.size() >= kLineBytesMax) {
        on_line_(child->spec.name, child->partial_line);
        child->partial_line.clear();
      }
    }
  }
}

void Supervisor::CloseOutput(Child* child) {
  if (!child->partial_line.empty()) on_line_(child->spec.name, child->partial_line);
  child->partial_line.clear();
  close(child->output);
  child->output = -1;
}

void Supervisor::Reap() {
  for (Child& child : children_) {
    int status = 0;
    if (child.pid > 0 && waitpid(child.pid, &status, WNOHANG) == child.pid) OnDeath(&child, status);
  }
}

void Supervisor::OnDeath(Child* child, int status) {
  if (child->output >= 0) ReadOutput(child);
  // A grandchild may have the other end still; what it says is of no interest.
  if (child->output >= 0) CloseOutput(child);
  child->how = HowItEnded(status);
  child->status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  const absl::Time now = clock_.Now();
  const bool early = now - child->started < options_.stable;
  child->early_deaths = early ? child->early_deaths + 1 : 1;
  child->pid = 0;
  close(child->pid_fd);
  child->pid_fd = -1;
  const bool orderly = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (child->stopping) {
    Log(orderly ? LogLevel::kInfo : LogLevel::kWarn, "ended",
        {{"child", child->spec.name}, {"how", child->how}});
    return;
  }
  if (is_last_({child->spec.name, child->how, child->status, child->early_deaths})) {
    child->restart_at = absl::InfiniteFuture();
    LogError("died; will not be started again", {{"child", child->spec.name}, {"how", child->how}});
    return;
  }
  const int doublings = std::min(child->early_deaths - 1, 20);
  const absl::Duration wait =
      std::min(options_.backoff_max, options_.backoff_min * (int64_t{1} << doublings));
  child->restart_at = now + wait;
  // One that was drained on its own has done what it was asked.
  Log(orderly ? LogLevel::kInfo : LogLevel::kError,
      orderly ? "ended; will be started again" : "died; will be started again",
      {{"child", child->spec.name}, {"how", child->how}, {"after", wait}});
}

void Supervisor::Stop(const std::function<bool(const std::string& name)>& which, int signal) {
  for (Child& child : children_) {
    if (!which(child.spec.name)) continue;
    child.stopping = true;
    child.restart_at = absl::InfiniteFuture();
    if (child.pid > 0) kill(child.pid, signal);
  }
}

size_t Supervisor::Running(const std::function<bool(const std::string& name)>& which) const {
  return static_cast<size_t>(std::count_if(children_.begin(), children_.end(), [&](const Child& c) {
    return c.pid > 0 && which(c.spec.name);
  }));
}

std::vector<Supervisor::Failing> Supervisor::Failures() const {
  std::vector<Failing> failures;
  for (const Child& child : children_) {
    if (child.early_deaths == 0) continue;
    failures.push_back({child.spec.name, child.how, child.status, child.early_deaths});
  }
  std::stable_sort(failures.begin(), failures.end(),
                   [](const Failing& a, const Failing& b) { return a.deaths > b.deaths; });
  return failures;
}

}  // namespace sluice::cli
