// Log lines: one event each, to stderr, as JSON or as text for people.
//
//   LogInfo("router lost", {{"router", address}, {"requests", count}});
//   {"ts":"2026-11-22T05:40:10.123456Z","level":"info","process":"sluice-decode","instance":"decode-1",
//    "msg":"router lost","router":"127.0.0.1:9001","requests":3}
//
// A line about one request carries its id under kRequestIdField. Prompts, answers and keys are
// never logged at kInfo or more severe levels.
//
// Lines are written by a thread of the log's own from a bounded queue: no caller ever waits for a
// slow stderr. When the queue is full the oldest lines go; DroppedLogLines() counts them, and a
// line of its own tells how many, once a second at most.
// Before StartLogging() and after StopLogging() lines of kInfo and more severe go straight to
// stderr.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace sluice {

enum class LogLevel { kError, kWarn, kInfo, kDebug, kTrace };
enum class LogFormat { kJson, kText };

inline constexpr char kRequestIdField[] = "request_id";

// The key of a value, a literal. Not one of those that every line has: in JSON it would stand there
// twice. That is found when the line is compiled.
struct LogFieldName {
  template <size_t kSize>
  consteval LogFieldName(const char (&literal)[kSize]) : name(literal, kSize - 1) {  // NOLINT
    for (const std::string_view taken : {"ts", "level", "process", "instance", "msg"}) {
      if (std::string_view(literal, kSize - 1) == taken) throw "a key that every line has";
    }
  }
  absl::string_view name;
};

// One more value in a line. Lives no longer than the call it is made for.
struct LogField {
  LogField(LogFieldName name, absl::string_view text) : name(name.name), value(text) {}
  LogField(LogFieldName name, const char* text) : name(name.name), value(text) {}
  LogField(LogFieldName name, const std::string& text) : name(name.name), value(text) {}
  LogField(LogFieldName name, bool value)
      : name(name.name), value(value ? "true" : "false"), quoted(false) {}
  template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
  LogField(LogFieldName name, T number)
      : name(name.name), value(absl::StrCat(number)), quoted(std::is_floating_point_v<T>) {
    // JSON has no number for inf and nan: those stay text.
    if (quoted && number - number == T{0}) quoted = false;
  }
  LogField(LogFieldName name, absl::Duration duration)
      : name(name.name), value(absl::FormatDuration(duration)) {}
  LogField(LogFieldName name, const absl::Status& status)
      : name(name.name), value(status.ToString()) {}

  absl::string_view name;
  std::string value;
  bool quoted = true;
};

struct LogOptions {
  LogFormat format = LogFormat::kText;
  LogLevel level = LogLevel::kInfo;
  std::string process;   // "sluice-decode"
  std::string instance;  // "decode-1"; may be empty
  int fd = 2;            // not owned; where lines go
};

// Once, at the start of a program. FailedPrecondition when it runs already.
absl::Status StartLogging(const LogOptions& options);
// Writes what is queued and ends the log's thread; once nobody has taken a byte for a second, what
// is left is lost. Does nothing when there is none.
void StopLogging();

// "error", "warn", "info", "debug", "trace". InvalidArgument names them.
absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view name);
absl::string_view LogLevelName(LogLevel level);

// From any thread, at any time.
LogLevel SetLogLevel(LogLevel level);  // gives the level that was
bool LogEnabled(LogLevel level);
uint64_t DroppedLogLines();

void Log(LogLevel level, absl::string_view message, std::initializer_list<LogField> fields = {});

// A line that is finished already, of a child's log say, without its end; passed on as it is.
void LogLine(absl::string_view line);

inline void LogError(absl::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kError, message, fields);
}
inline void LogWarn(absl::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kWarn, message, fields);
}
inline void LogInfo(absl::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kInfo, message, fields);
}
inline void LogDebug(absl::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kDebug, message, fields);
}

}  // namespace sluice
