#include "services/base/log.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "spdlog/async.h"
#include "spdlog/sinks/base_sink.h"

namespace sluice {
namespace {

constexpr size_t kQueueLines = 8192;

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

// Lines come finished, so no formatter of spdlog's is asked.
class FdSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit FdSink(int fd) : fd_(fd) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    WriteAll(fd_, {message.payload.data(), message.payload.size()});
  }
  void flush_() override {}

  const int fd_;
};

struct LogState {
  std::mutex mutex;  // guards all below
  // Copied by each line, so that StopLogging() takes it from nobody's hands.
  std::shared_ptr<spdlog::async_logger> logger;
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

}  // namespace

absl::Status StartLogging(const LogOptions& options) {
  LogState& state = State();
  const std::lock_guard lock(state.mutex);
  if (state.logger != nullptr) {
    return absl::FailedPreconditionError("the log runs already; it is started once");
  }
  state.options = options;
  state.pool = std::make_shared<spdlog::details::thread_pool>(kQueueLines, 1);
  state.logger = std::make_shared<spdlog::async_logger>(
      "sluice", std::make_shared<FdSink>(options.fd), state.pool,
      spdlog::async_overflow_policy::overrun_oldest);
  state.logger->set_level(spdlog::level::trace);  // levels are looked at before a line is made
  current_level = options.level;
  return absl::OkStatus();
}

void StopLogging() {
  LogState& state = State();
  std::shared_ptr<spdlog::async_logger> logger;
  std::shared_ptr<spdlog::details::thread_pool> pool;
  {
    const std::lock_guard lock(state.mutex);
    if (state.pool == nullptr) return;
    state.dropped_before += state.pool->overrun_counter();
    logger = std::move(state.logger);
    pool = std::move(state.pool);
    state.logger = nullptr;
    state.pool = nullptr;
    state.options = LogOptions();
  }
  logger.reset();
  pool.reset();  // the last one out joins the thread, which first writes what is queued
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
  const std::string time =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
  LogState& state = State();
  std::shared_ptr<spdlog::async_logger> logger;
  LogOptions options;
  {
    const std::lock_guard lock(state.mutex);
    logger = state.logger;
    options = state.options;
  }
  const std::string line = options.format == LogFormat::kJson
                               ? JsonLine(time, level, message, fields, options)
                               : TextLine(time, level, message, fields, options);
  if (logger == nullptr) {
    WriteAll(options.fd, line);
  } else {
    logger->log(spdlog::level::info, spdlog::string_view_t(line.data(), line.size()));
  }
}

}  // namespace sluice
