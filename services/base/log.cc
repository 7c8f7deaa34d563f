#include "services/base/log.h"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <limits>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "spdlog/async.h"
#include "spdlog/sinks/base_sink.h"

namespace sluice {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

constexpr size_t kQueueLines = 8192;
constexpr std::chrono::seconds kLastReaderMax{1};  // for a reader, once the log ends
constexpr std::chrono::seconds kTellDroppedPeriod{1};
constexpr int kPollMs = 100;

void WriteAll(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return;  // nowhere to tell of it
    }
    text.remove_prefix(static_cast<size_t>(written));
  }
}

// A pipe that has room has it for so much: written in such pieces, a line never blocks once there
// is room. Files take whole lines, which other processes' lines do not tear apart then.
size_t PieceBytes(int fd) {
  struct stat status {};
  const bool is_file = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  return is_file ? std::numeric_limits<size_t>::max() : PIPE_BUF;
}

std::string MakeLine(LogLevel level, absl::string_view message,
                     std::initializer_list<LogField> fields, const LogOptions& options);

// Lines come finished, so no formatter of spdlog's is asked. Waits for whoever reads, but not when
// the log ends.
class FdSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  FdSink(LogOptions options, uint64_t dropped)
      : options_(std::move(options)),
        piece_bytes_(PieceBytes(options_.fd)),
        dropped_told_(dropped) {}

  // Any thread.
  void BeginEnd() {
    end_began_ = std::chrono::steady_clock::now();
    ending_ = true;
  }
  // When the log's thread is gone.
  void TellLastDropped() {
    const std::lock_guard lock(mutex_);
    dropped_told_at_ = SteadyTime();
    TellDropped();
  }

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    TellDropped();
    Write({message.payload.data(), message.payload.size()});
  }
  void flush_() override {}

  void TellDropped() {
    const uint64_t dropped = DroppedLogLines();
    const SteadyTime now = std::chrono::steady_clock::now();
    if (dropped == dropped_told_ || !LogEnabled(LogLevel::kWarn)) return;
    if (now - dropped_told_at_ < kTellDroppedPeriod) return;
    Write(MakeLine(LogLevel::kWarn, "log lines are lost: they are not read fast enough",
                   {{"lines", dropped - dropped_told_}}, options_));
    dropped_told_ = dropped;
    dropped_told_at_ = now;
  }

  void Write(absl::string_view text) {
    while (!text.empty() && AwaitRoom()) {
      const ssize_t written =
          ::write(options_.fd, text.data(), std::min(text.size(), piece_bytes_));
      if (written < 0) {
        if (errno == EINTR || errno == EAGAIN) continue;
        return;  // nowhere to tell of it
      }
      text.remove_prefix(static_cast<size_t>(written));
      last_written_ = std::chrono::steady_clock::now();
    }
  }

  // False: it has been waited for long enough.
  bool AwaitRoom() {
    pollfd fd{.fd = options_.fd, .events = POLLOUT, .revents = 0};
    while (!given_up_) {
      if (poll(&fd, 1, kPollMs) > 0) return true;  // also for what write() will tell
      if (!ending_) continue;
      const SteadyTime since = std::max(last_written_, end_began_.load());
      given_up_ = std::chrono::steady_clock::now() - since >= kLastReaderMax;
    }
    return false;
  }

  const LogOptions options_;
  const size_t piece_bytes_;
  uint64_t dropped_told_;
  SteadyTime dropped_told_at_;
  SteadyTime last_written_;
  bool given_up_ = false;
  std::atomic<SteadyTime> end_began_{SteadyTime()};
  std::atomic<bool> ending_{false};
};

struct LogState {
  std::mutex mutex;  // guards all below
  // Copied by each line, so that StopLogging() takes it from nobody's hands.
  std::shared_ptr<spdlog::async_logger> logger;
  std::shared_ptr<FdSink> sink;
  std::shared_ptr<spdlog::details::thread_pool> pool;
  LogOptions options;
  uint64_t dropped_before = 0;  // by logs that have been stopped
};

LogState& State() {
  static auto* const state = new LogState;
  return *state;
}

std::atomic<LogLevel> current_level{LogLevel::kInfo};

constexpr absl::string_view kLevelNames[] = {"error", "warn", "info", "debug", "trace"};

// Escapes what JSON wants escaped; bytes that are not ASCII pass, for log lines are UTF-8 already
// or show a file's bytes as they are.
void AppendJsonText(absl::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\t':
        out->append("\\t");
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          absl::StrAppendFormat(out, "\\u%04x", static_cast<unsigned char>(c));
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

void AppendMember(absl::string_view name, absl::string_view text, std::string* out) {
  out->push_back(out->empty() ? '{' : ',');
  AppendJsonText(name, out);
  out->push_back(':');
  AppendJsonText(text, out);
}

std::string JsonLine(absl::string_view time, LogLevel level, absl::string_view message,
                     std::initializer_list<LogField> fields, const LogOptions& options) {
  std::string line;
  AppendMember("ts", time, &line);
  AppendMember("level", LogLevelName(level), &line);
  if (!options.process.empty()) AppendMember("process", options.process, &line);
  if (!options.instance.empty()) AppendMember("instance", options.instance, &line);
  AppendMember("msg", message, &line);
  for (const LogField& field : fields) {
    if (field.quoted) {
      AppendMember(field.name, field.value, &line);
    } else {
      line.push_back(',');
      AppendJsonText(field.name, &line);
      absl::StrAppend(&line, ":", field.value);
    }
  }
  line.append("}\n");
  return line;
}

// Text is quoted where it would not read as one word.
void AppendTextValue(const LogField& field, std::string* out) {
  const bool plain = !field.value.empty() &&
                     field.value.find_first_of(" \"\\\n\t=") == std::string::npos &&
                     field.value.find_first_of('\x1b') == std::string::npos;
  if (plain) {
    out->append(field.value);
  } else {
    AppendJsonText(field.value, out);
  }
}

std::string TextLine(absl::string_view time, LogLevel level, absl::string_view message,
                     std::initializer_list<LogField> fields, const LogOptions& options) {
  std::string line = absl::StrFormat("%s %-5s ", time, LogLevelName(level));
  if (!options.instance.empty()) absl::StrAppend(&line, "[", options.instance, "] ");
  for (const char c : message) line.push_back(c == '\n' ? ' ' : c);
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", field.name, "=");
    AppendTextValue(field, &line);
  }
  line.push_back('\n');
  return line;
}

std::string MakeLine(LogLevel level, absl::string_view message,
                     std::initializer_list<LogField> fields, const LogOptions& options) {
  const std::string time =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
  return options.format == LogFormat::kJson ? JsonLine(time, level, message, fields, options)
                                            : TextLine(time, level, message, fields, options);
}

std::pair<std::shared_ptr<spdlog::async_logger>, LogOptions> CurrentLog() {
  LogState& state = State();
  const std::lock_guard lock(state.mutex);
  return {state.logger, state.options};
}

void Put(absl::string_view line, spdlog::async_logger* logger, const LogOptions& options) {
  if (logger == nullptr) {
    WriteAll(options.fd, line);
  } else {
    logger->log(spdlog::level::info, spdlog::string_view_t(line.data(), line.size()));
  }
}

}  // namespace

absl::Status StartLogging(const LogOptions& options) {
  LogState& state = State();
  const std::lock_guard lock(state.mutex);
  if (state.logger != nullptr) {
    return absl::FailedPreconditionError("the log runs already; it is started once");
  }
  state.options = options;
  state.pool = std::make_shared<spdlog::details::thread_pool>(kQueueLines, 1);
  state.sink = std::make_shared<FdSink>(options, state.dropped_before);
  state.logger = std::make_shared<spdlog::async_logger>(
      "sluice", state.sink, state.pool, spdlog::async_overflow_policy::overrun_oldest);
  state.logger->set_level(spdlog::level::trace);  // levels are looked at before a line is made
  current_level = options.level;
  return absl::OkStatus();
}

void StopLogging() {
  LogState& state = State();
  std::shared_ptr<spdlog::async_logger> logger;
  std::shared_ptr<spdlog::details::thread_pool> pool;
  std::shared_ptr<FdSink> sink;
  {
    const std::lock_guard lock(state.mutex);
    if (state.pool == nullptr) return;
    state.dropped_before += state.pool->overrun_counter();
    logger = std::move(state.logger);
    pool = std::move(state.pool);
    sink = std::move(state.sink);
    state.logger = nullptr;
    state.pool = nullptr;
    state.sink = nullptr;
    state.options = LogOptions();
  }
  sink->BeginEnd();
  logger.reset();
  pool.reset();  // the last one out joins the thread, which first writes what is queued
  sink->TellLastDropped();
}

absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view name) {
  for (size_t i = 0; i < std::size(kLevelNames); ++i) {
    if (name == kLevelNames[i]) return static_cast<LogLevel>(i);
  }
  return absl::InvalidArgumentError(absl::StrCat("no log level '", name.substr(0, 40),
                                                 "'; there are: error, warn, info, debug, trace"));
}

absl::string_view LogLevelName(LogLevel level) { return kLevelNames[static_cast<size_t>(level)]; }

LogLevel SetLogLevel(LogLevel level) { return current_level.exchange(level); }

bool LogEnabled(LogLevel level) { return level <= current_level.load(std::memory_order_relaxed); }

uint64_t DroppedLogLines() {
  LogState& state = State();
  const std::lock_guard lock(state.mutex);
  return state.dropped_before + (state.pool == nullptr ? 0 : state.pool->overrun_counter());
}

void Log(LogLevel level, absl::string_view message, std::initializer_list<LogField> fields) {
  if (!LogEnabled(level)) return;
  const auto [logger, options] = CurrentLog();
  Put(MakeLine(level, message, fields, options), logger.get(), options);
}

void LogLine(absl::string_view line) {
  const auto [logger, options] = CurrentLog();
  Put(absl::StrCat(line, "\n"), logger.get(), options);
}

}  // namespace sluice
