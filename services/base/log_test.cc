#include "services/base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "services/base/json.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

// Runs the log into a file; its lines once it has been stopped.
class LogTest : public ::testing::Test {
 protected:
  void Start(LogFormat format, LogLevel level) {
    file_ = std::tmpfile();
    ASSERT_NE(file_, nullptr);
    ASSERT_TRUE(StartLogging({.format = format,
                              .level = level,
                              .process = "sluice-decode",
                              .instance = "decode-1",
                              .fd = fileno(file_)})
                    .ok());
  }

  std::vector<std::string> StopAndRead() {
    StopLogging();
    std::rewind(file_);
    std::string text;
    std::array<char, 4096> buffer;
    while (const size_t read = std::fread(buffer.data(), 1, buffer.size(), file_)) {
      text.append(buffer.data(), read);
    }
    std::fclose(file_);
    EXPECT_TRUE(text.empty() || text.back() == '\n');
    std::vector<std::string> lines = absl::StrSplit(text, '\n');
    lines.pop_back();
    return lines;
  }

  void TearDown() override {
    StopLogging();
    SetLogLevel(LogLevel::kInfo);
  }

  std::FILE* file_ = nullptr;
};

TEST_F(LogTest, EveryJsonLineParsesWhateverIsLogged) {
  Start(LogFormat::kJson, LogLevel::kInfo);
  LogInfo("a \"message\"\nof two lines\x01\\", {{kRequestIdField, "chatcmpl-7"},
                                                {"count", 3},
                                                {"big", std::numeric_limits<uint64_t>::max()},
                                                {"ratio", 0.5},
                                                {"nan", std::nan("")},
                                                {"inf", std::numeric_limits<double>::infinity()},
                                                {"yes", true},
                                                {"took", absl::Milliseconds(1500)},
                                                {"status", absl::NotFoundError("gone")}});
  const auto lines = StopAndRead();
  ASSERT_EQ(lines.size(), 1u);
  const auto json = ParseJson(lines[0], "line");
  ASSERT_TRUE(json.ok()) << json.status() << lines[0];
  EXPECT_THAT(json->at("ts").get<std::string>(), MatchesRegex("20..-..-..T..:..:..\\.......Z"));
  EXPECT_EQ(json->at("level"), "info");
  EXPECT_EQ(json->at("process"), "sluice-decode");
  EXPECT_EQ(json->at("instance"), "decode-1");
  EXPECT_EQ(json->at("msg"), "a \"message\"\nof two lines\x01\\");
  EXPECT_EQ(json->at("request_id"), "chatcmpl-7");
  EXPECT_EQ(json->at("count"), 3);
  EXPECT_EQ(json->at("big"), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(json->at("ratio"), 0.5);
  EXPECT_EQ(json->at("nan"), "nan");
  EXPECT_EQ(json->at("inf"), "inf");
  EXPECT_EQ(json->at("yes"), true);
  EXPECT_EQ(json->at("took"), "1.5s");
  EXPECT_EQ(json->at("status"), "NOT_FOUND: gone");
}

TEST_F(LogTest, TextLinesStayOneLineAndQuoteWhatIsNotAWord) {
  Start(LogFormat::kText, LogLevel::kInfo);
  LogWarn("lost\na router", {{"router", "127.0.0.1:9001"}, {"why", "reset\nby peer"}, {"n", 2}});
  const auto lines = StopAndRead();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], MatchesRegex("20.*Z warn  \\[decode-1\\] lost a router "
                                     "router=127\\.0\\.0\\.1:9001 why=\"reset\\\\nby peer\" n=2"));
}

TEST_F(LogTest, LevelChangesWhileItRuns) {
  Start(LogFormat::kText, LogLevel::kWarn);
  LogInfo("not this");
  LogError("this");
  EXPECT_EQ(SetLogLevel(LogLevel::kDebug), LogLevel::kWarn);
  EXPECT_TRUE(LogEnabled(LogLevel::kDebug));
  EXPECT_FALSE(LogEnabled(LogLevel::kTrace));
  LogDebug("this too");
  const auto lines = StopAndRead();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], HasSubstr(" error [decode-1] this"));
  EXPECT_THAT(lines[1], HasSubstr(" debug [decode-1] this too"));
}

TEST_F(LogTest, ManyThreadsLoseNothingUnlessItIsCounted) {
  Start(LogFormat::kJson, LogLevel::kInfo);
  const uint64_t dropped_before = DroppedLogLines();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 1000; ++i) LogInfo("line", {{"thread", t}, {"i", i}});
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto lines = StopAndRead();
  EXPECT_EQ(lines.size() + (DroppedLogLines() - dropped_before), 4000u);
  for (const std::string& line : lines) ASSERT_TRUE(ParseJson(line, "line").ok()) << line;
}

// A stderr that nobody reads must not stop the service.
TEST_F(LogTest, AFullPipeDropsLinesInsteadOfBlocking) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_TRUE(StartLogging({.process = "sluice-router", .instance = "", .fd = ends[1]}).ok());
  const uint64_t dropped_before = DroppedLogLines();
  const std::string filler(1000, 'x');
  for (int i = 0; i < 20000; ++i) LogInfo("line", {{"filler", filler}});
  EXPECT_GT(DroppedLogLines(), dropped_before);
  std::string text;
  std::thread reader([&] {
    std::array<char, 65536> buffer;
    for (ssize_t got = 0; (got = read(ends[0], buffer.data(), buffer.size())) > 0;) {
      text.append(buffer.data(), static_cast<size_t>(got));
    }
  });
  StopLogging();
  close(ends[1]);
  reader.join();
  close(ends[0]);
  // Those that came through, and those that it says are lost, are all there were.
  uint64_t lines = 0, lost = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    uint64_t count = 0;
    const std::vector<absl::string_view> parts =
        absl::StrSplit(line, "warn  log lines are lost: they are not read fast enough lines=");
    if (parts.size() == 2 && absl::SimpleAtoi(parts[1], &count)) {
      lost += count;
    } else {
      ++lines;
    }
  }
  EXPECT_EQ(lost, DroppedLogLines() - dropped_before);
  EXPECT_EQ(lines + lost, 20000u);
}

TEST_F(LogTest, EndsThoughNobodyReads) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_TRUE(StartLogging({.process = "sluice-router", .fd = ends[1]}).ok());
  const std::string filler(100'000, 'x');
  for (int i = 0; i < 10; ++i) LogInfo("line", {{"filler", filler}});
  StopLogging();
  close(ends[0]);
  close(ends[1]);
}

TEST_F(LogTest, PassesFinishedLinesOnInTheirTurn) {
  Start(LogFormat::kJson, LogLevel::kError);
  LogError("before");
  LogLine("{\"of\": \"a child\"}");
  LogError("behind");
  const auto lines = StopAndRead();
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[1], "{\"of\": \"a child\"}");
  EXPECT_THAT(lines[2], HasSubstr("behind"));
}

TEST_F(LogTest, StartsOnce) {
  Start(LogFormat::kText, LogLevel::kInfo);
  EXPECT_EQ(StartLogging({}).code(), absl::StatusCode::kFailedPrecondition);
  StopAndRead();
  StopLogging();  // nothing to stop is fine
}

TEST(LogLevelTest, NamesThere) {
  for (const char* name : {"error", "warn", "info", "debug", "trace"}) {
    const auto level = ParseLogLevel(name);
    ASSERT_TRUE(level.ok()) << name;
    EXPECT_EQ(LogLevelName(*level), name);
  }
  for (const char* name : {"", "INFO", "warning", "5"}) {
    EXPECT_THAT(std::string(ParseLogLevel(name).status().message()), HasSubstr("there are: error"));
  }
}

}  // namespace
}  // namespace sluice
