// sluice up: a whole cluster on this machine, from one file.

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status.h"
#include "services/base/clock.h"
#include "services/base/cluster_config.h"
#include "services/base/log.h"
#include "services/base/program.h"
#include "services/base/shutdown.h"
#include "services/rpc/admin_client.h"
#include "tools/sluice/commands.h"
#include "tools/sluice/free_ports.h"
#include "tools/sluice/http_client.h"
#include "tools/sluice/supervisor.h"

namespace sluice::cli {
namespace {

// A process that dies so often before the cluster was ever ready will not get better; one that ends
// with its arguments or the cluster file, a port or a device, or the model does so at once.
constexpr int kEarlyDeathsMax = 3;
bool IsHopeless(const Supervisor::Failing& failing) {
  const int status = failing.status;
  return failing.deaths >= kEarlyDeathsMax || status == kExitUsage || status == kExitPreflight ||
         status == kExitModel;
}
constexpr absl::Duration kReadyPoll = absl::Milliseconds(50);
constexpr absl::Duration kReadyTimeout = absl::Seconds(1);
// Beyond timeouts.drain, for what a process does when it has drained.
constexpr absl::Duration kDrainMargin = absl::Seconds(5);

struct UpOptions {
  std::string file;
  std::string model_dir;
  std::string programs;
  std::string log_file;
  std::vector<std::string> command;
};

absl::StatusOr<std::string> ProgramsDir(const UpOptions& options) {
  if (!options.programs.empty()) return std::filesystem::absolute(options.programs).string();
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::UnavailableError(absl::StrCat("/proc/self/exe: ", error.message()));
  return self.parent_path().string();
}

// The file as children read it: every default and every port filled in. Lives in memory, under a
// name that children inherit.
absl::StatusOr<std::string> ShareConfig(const ClusterConfig& config) {
  const int fd = memfd_create("cluster.yaml", 0);
  const std::string yaml = ToYaml(config);
  if (fd < 0 || write(fd, yaml.data(), yaml.size()) != static_cast<ssize_t>(yaml.size())) {
    return absl::UnavailableError(absl::StrCat("memfd_create: ", std::strerror(errno)));
  }
  return absl::StrCat("/proc/self/fd/", fd);
}

// Where this machine reaches it.
Address Reachable(Address address) {
  if (address.host == "0.0.0.0") address.host = "127.0.0.1";
  if (address.host == "::") address.host = "::1";
  return address;
}

std::string Url(const ClusterConfig& config, const Address& address, absl::string_view path) {
  return absl::StrCat(config.router.tls.enabled() ? "https://" : "http://",
                      Reachable(address).ToString(), path);
}

// OK when this router can place a request.
absl::Status CheckReady(const ClusterConfig& config, const ProcessConfig& router) {
  if (config.router.tls.enabled()) {
    // Whom clients trust, and what they show, is not known here: its admin port wants neither.
    const auto status =
        rpc::AdminClient(Reachable(*router.admin).ToString()).GetStatus(kReadyTimeout);
    if (!status.ok() || status->ready()) return status.status();
    return absl::UnavailableError("no request can be placed yet");
  }
  SLUICE_ASSIGN_OR_RETURN(const HttpClient client,
                          HttpClient::Create(Url(config, *router.http, ""), ""));
  SLUICE_ASSIGN_OR_RETURN(const HttpResponse health, client.Get("/health", kReadyTimeout));
  return ErrorOf(health);
}

void PrintReady(const ClusterConfig& config) {
  std::vector<std::string> counts;
  const auto count = [&](int number, const char* role) {
    if (number > 0) counts.push_back(absl::StrCat(number, " ", role));
  };
  count(config.router.count, config.router.count == 1 ? "router" : "routers");
  count(config.prefill.count, "prefill");
  count(config.decode.count, "decode");
  count(config.mixed.count, "mixed");
  count(config.balancer.enabled ? 1 : 0, "balancer");
  std::printf("%s is up: %s.\n\n", config.model.name.c_str(), absl::StrJoin(counts, ", ").c_str());
  for (const ProcessConfig& process : Processes(config)) {
    if (process.role != "router") continue;
    std::printf("  OpenAI API  %s\n", Url(config, *process.http, "/v1").c_str());
    std::printf("  gRPC API    %s\n", process.grpc->ToString().c_str());
    std::printf("  metrics     %s\n", Url(config, *process.http, "/metrics").c_str());
    std::printf("  admin       %s   (sluice top --admin %s)\n\n", process.admin->ToString().c_str(),
                process.admin->ToString().c_str());
  }
  std::printf(
      "Ask it:\n\n"
      "  curl -sSN %s \\\n"
      "    -H 'Content-Type: application/json' %s\\\n"
      "    -d '{\"model\": \"%s\", \"messages\": [{\"role\": \"user\", \"content\": \"What is 47 + "
      "85?\"}], \"stream\": true}'\n\n"
      "  sluice chat --endpoint %s\n\n"
      "Ctrl-C drains and stops.\n",
      Url(config, config.router.http, "/v1/chat/completions").c_str(),
      config.router.api_keys.empty() ? "" : "-H \"Authorization: Bearer $KEY\" ",
      config.model.name.c_str(), Url(config, config.router.http, "").c_str());
  std::fflush(stdout);
}

bool IsRouter(const std::string& name) { return absl::StartsWith(name, "router-"); }
bool IsNotRouter(const std::string& name) { return !IsRouter(name); }

class Cluster {
 public:
  Cluster(const UpOptions& options, ClusterConfig config, ShutdownSignal* shutdown)
      : options_(options),
        config_(std::move(config)),
        shutdown_(*shutdown),
        wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        supervisor_(
            {}, &clock_,
            [this, json = config_.logging.format == LogFormat::kJson](const std::string& name,
                                                                      absl::string_view line) {
              if (!ready_) Remember(name, line);
              json ? PassOnJson(name, line) : PassOn(name, line);
            },
            [this](const Supervisor::Failing& failing) { return !ready_ && IsHopeless(failing); }) {
    shutdown_.OnRequested([fd = wake_fd_] {
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t written = write(fd, &one, sizeof one);
    });
  }

  absl::Status Run() {
    SLUICE_ASSIGN_OR_RETURN(const std::string programs, ProgramsDir(options_));
    SLUICE_RETURN_IF_ERROR(ports_.Fill(&config_));
    SLUICE_ASSIGN_OR_RETURN(const std::string shared, ShareConfig(config_));
    absl::Status status = absl::OkStatus();
    for (const ProcessConfig& process : Processes(config_)) {
      status = supervisor_.Start({.name = process.name,
                                  .arguments = {absl::StrCat(programs, "/", process.program),
                                                "--config", shared, "--instance", process.name}});
      if (!status.ok()) break;
    }
    if (status.ok()) status = AwaitReady();
    if (status.ok() && !shutdown_.requested()) {
      if (options_.command.empty()) {
        PrintReady(config_);
        while (!shutdown_.requested()) supervisor_.Poll(absl::Seconds(10), {wake_fd_});
      } else {
        status = RunCommand();
      }
    }
    const absl::Status drained = Drain();
    return status.ok() ? drained : status;
  }

 private:
  // Why it ended, if it says so before that: its last error, else its last line.
  void Remember(const std::string& name, absl::string_view line) {
    LastWords& words = last_words_[name];
    const bool is_error =
        absl::StrContains(line, "\"level\":\"error\"") || absl::StrContains(line, "Z error ");
    if (words.is_error && !is_error) return;
    words = {is_error, std::string(line)};
  }

  // OK, or why the cluster will not become ready.
  absl::Status CheckStarting() const {
    for (const Supervisor::Failing& failing : supervisor_.Failures()) {
      if (!IsHopeless(failing)) continue;
      const auto words = last_words_.find(failing.name);
      return absl::UnavailableError(absl::StrCat(
          "the cluster did not start: ", failing.name, " ", failing.how,
          failing.deaths > 1 ? absl::StrCat(", ", failing.deaths, " times") : "",
          options_.log_file.empty() ? "" : absl::StrCat("; its lines are in ", options_.log_file),
          words == last_words_.end() ? "" : absl::StrCat("; its last: ", words->second.line)));
    }
    return absl::OkStatus();
  }

  // Through the log's queue: whoever does not read must not stop the supervisor.
  // A line with its process's name in front, unless it has it already.
  static void PassOn(const std::string& name, absl::string_view line) {
    const bool named = absl::StrContains(line, absl::StrCat("[", name, "]"));
    LogLine(named ? std::string(line) : absl::StrCat("[", name, "] ", line));
  }
  // What a child prints beside its log (a library's complaint, say) must not spoil the whole.
  static void PassOnJson(const std::string& name, absl::string_view line) {
    if (!absl::StartsWith(line, "{")) return LogWarn("printed", {{"child", name}, {"line", line}});
    LogLine(line);
  }

  absl::Status AwaitReady() {
    const absl::Time deadline = clock_.Now() + config_.timeouts.start;
    std::vector<ProcessConfig> routers;
    for (const ProcessConfig& process : Processes(config_)) {
      if (process.role == "router") routers.push_back(process);
    }
    std::string last = "nothing yet";
    while (!routers.empty()) {
      supervisor_.Poll(kReadyPoll, {wake_fd_});
      if (shutdown_.requested()) return absl::OkStatus();
      SLUICE_RETURN_IF_ERROR(CheckStarting());
      const absl::Status answer = CheckReady(config_, routers.back());
      // An answer while a child keeps dying may be another cluster's.
      if (answer.ok() && supervisor_.Failures().empty()) {
        routers.pop_back();
        continue;
      }
      last = std::string(answer.message());
      if (clock_.Now() > deadline) {
        return absl::DeadlineExceededError(absl::StrCat(
            "the cluster was not ready within ", absl::FormatDuration(config_.timeouts.start),
            " (timeouts.start); the router said: ", last));
      }
    }
    ready_ = true;
    return absl::OkStatus();
  }

  // The command with the terminal to itself, the endpoint in its environment.
  absl::Status RunCommand() {
    setenv("SLUICE_ENDPOINT", Url(config_, config_.router.http, "").c_str(), 1);
    std::vector<std::string> words = options_.command;
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid < 0) return absl::UnavailableError(absl::StrCat("cannot fork: ", std::strerror(errno)));
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(127);
      sigset_t none;
      sigemptyset(&none);
      sigprocmask(SIG_SETMASK, &none, nullptr);
      std::signal(SIGPIPE, SIG_DFL);
      execvp(argv[0], argv.data());
      _exit(127);
    }
    const int ended_fd = OpenPidFd(pid);
    const absl::Cleanup close_it = [ended_fd] { close(ended_fd); };
    int status = 0;
    bool told = false;
    while (waitpid(pid, &status, WNOHANG) == 0) {
      if (shutdown_.requested() && !told) {
        kill(pid, SIGTERM);
        told = true;
      }
      supervisor_.Poll(absl::Seconds(1), {ended_fd, told ? -1 : wake_fd_});
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
    return absl::UnknownError(
        WIFEXITED(status) ? absl::StrCat(words[0], " exited with status ", WEXITSTATUS(status),
                                         WEXITSTATUS(status) == 127 ? " (it may not be there)" : "")
                          : absl::StrCat(words[0], " was killed by signal ", WTERMSIG(status)));
  }

  // Routers first: they end when their streams have, and need the workers for that.
  absl::Status Drain() {
    LogInfo("draining");
    const absl::Duration patience = config_.timeouts.drain + kDrainMargin;
    std::vector<std::string> killed;
    for (const auto& which : {IsRouter, IsNotRouter}) {
      supervisor_.Stop(which, SIGTERM);
      const absl::Time deadline = clock_.Now() + patience;
      while (supervisor_.Running(which) > 0 && clock_.Now() < deadline) {
        supervisor_.Poll(deadline - clock_.Now(), {});
      }
      if (const size_t left = supervisor_.Running(which); left > 0) {
        LogError("not drained in time; killed", {{"processes", left}, {"waited", patience}});
        killed.push_back(absl::StrCat(left, which == IsRouter ? " routers" : " workers"));
        supervisor_.Stop(which, SIGKILL);
        while (supervisor_.Running(which) > 0) supervisor_.Poll(absl::Seconds(1), {});
      }
    }
    if (killed.empty()) return absl::OkStatus();
    return absl::DeadlineExceededError(
        absl::StrCat(absl::StrJoin(killed, " and "), " did not drain within ",
                     absl::FormatDuration(patience), " and were killed"));
  }

  const UpOptions& options_;
  ClusterConfig config_;
  ShutdownSignal& shutdown_;
  const int wake_fd_;
  const RealClock clock_;
  HeldPorts ports_;
  bool ready_ = false;  // it was, once
  struct LastWords {
    bool is_error = false;
    std::string line;
  };
  std::map<std::string, LastWords> last_words_;  // by process, until ready
  Supervisor supervisor_;
};

absl::Status Up(const UpOptions& options) {
  // Before any other thread: they inherit what it does to signals.
  ShutdownSignal shutdown;
  SLUICE_ASSIGN_OR_RETURN(ClusterConfig config, LoadClusterConfig(options.file));
  if (!options.model_dir.empty()) {
    config.model.dir = std::filesystem::absolute(options.model_dir).lexically_normal().string();
    while (config.model.dir.size() > 1 && config.model.dir.back() == '/')
      config.model.dir.pop_back();
    config.model.name = std::filesystem::path(config.model.dir).filename().string();
  }
  int log_fd = STDERR_FILENO;
  if (!options.log_file.empty()) {
    log_fd =
        open(options.log_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
    if (log_fd < 0) {
      return absl::UnavailableError(
          absl::StrCat(options.log_file, ": cannot be written: ", std::strerror(errno)));
    }
  }
  SLUICE_RETURN_IF_ERROR(StartLogging({.format = config.logging.format,
                                       .level = config.logging.level,
                                       .process = "sluice-up",
                                       .instance = "up",
                                       .fd = log_fd}));
  const absl::Cleanup stop_logging = [] { StopLogging(); };
  return Cluster(options, std::move(config), &shutdown).Run();
}

}  // namespace

Command AddUpCommand(CLI::App* parent) {
  auto options = std::make_shared<UpOptions>();
  CLI::App* command = parent->add_subcommand(
      "up", "run a whole cluster on this machine, until Ctrl-C or SIGTERM drains it");
  command->add_option("-c,--config", options->file, "the cluster file")
      ->required()
      ->option_text("FILE REQUIRED");
  command->add_option("--model", options->model_dir, "this checkpoint instead of the file's")
      ->option_text("DIR");
  command->add_option("--programs", options->programs, "where sluice-router and the others are")
      ->option_text("DIR [beside sluice]");
  command->add_option("--log", options->log_file, "log lines go there instead of stderr")
      ->option_text("FILE");
  command
      ->add_option("command", options->command,
                   "run this once the cluster is ready, with its URL in SLUICE_ENDPOINT, and stop "
                   "when it ends")
      ->option_text("[-- COMMAND ARGUMENT...]");
  return [options] { return Up(*options); };
}

}  // namespace sluice::cli
