// The load client's checks: what they let pass, a load test would not see.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/bench/chat_check.h"
#include "tests/bench/emit_table.h"
#include "tests/bench/sse_reader.h"

namespace sluice::bench {
namespace {

constexpr uint64_t kSeed = 5;
constexpr uint32_t kTokens = 3;

std::string Letter(uint64_t output) {
  return std::string(1, static_cast<char>('a' + LetterOf(kSeed, output)));
}
std::string Delta(const std::string& text, const char* reason = "null") {
  return absl::StrCat(R"({"choices":[{"delta":{"content":")", text, R"("},"finish_reason":)",
                      reason, "}]}");
}
std::string Usage(int tokens) {
  return absl::StrCat(R"({"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":)", tokens,
                      "}}");
}

absl::Status Check(const std::vector<std::string>& events) {
  ChatCheck check(kSeed, kTokens);
  simdjson::dom::parser parser;
  for (const std::string& event : events) {
    if (absl::Status status = check.OnEvent(event, &parser); !status.ok()) return status;
  }
  return check.Complete();
}

TEST(ChatCheckTest, AnswersAndWhatIsWrongWithThem) {
  const std::string a = Delta(Letter(0)), b = Delta(Letter(1)),
                    last = Delta(Letter(2), "\"length\"");
  const std::string both = Delta(Letter(0) + Letter(1));
  const struct {
    const char* name;
    std::vector<std::string> events;
    bool right;
  } kCases[] = {
      {"right", {a, b, last, Usage(3), "[DONE]"}, true},
      {"two tokens in one event", {both, last, Usage(3), "[DONE]"}, true},
      {"nothing", {}, false},
      {"a token missing", {a, last, Usage(3), "[DONE]"}, false},
      {"a token twice", {a, a, b, last, Usage(3), "[DONE]"}, false},
      {"another order", {b, a, last, Usage(3), "[DONE]"}, false},
      {"a token too many", {a, b, last, Delta(Letter(3)), Usage(3), "[DONE]"}, false},
      {"ends early", {a, Delta(Letter(1), "\"length\""), Usage(3), "[DONE]"}, false},
      {"stops", {a, b, Delta(Letter(2), "\"stop\""), Usage(3), "[DONE]"}, false},
      {"no finish reason", {a, b, Delta(Letter(2)), Usage(3), "[DONE]"}, false},
      {"no usage", {a, b, last, "[DONE]"}, false},
      {"wrong usage", {a, b, last, Usage(2), "[DONE]"}, false},
      {"no [DONE]", {a, b, last, Usage(3)}, false},
      {"more after [DONE]", {a, b, last, Usage(3), "[DONE]", Usage(3)}, false},
      {"an error", {a, R"({"error":{"message":"no"}})", "[DONE]"}, false},
      {"no JSON", {a, "{", b, last, Usage(3), "[DONE]"}, false},
  };
  for (const auto& c : kCases) EXPECT_EQ(Check(c.events).ok(), c.right) << c.name;
}

TEST(SseReaderTest, EventsComeWholeHoweverTheBytesAreCut) {
  const std::string response =
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
      "b\r\ndata: one\n\n\r\n10\r\ndata: two\n\ndata:\r\n8\r\n three\n\n\r\n0\r\n\r\n";
  for (size_t step = 1; step <= response.size(); ++step) {
    SseReader reader;
    std::vector<std::string> events;
    for (size_t at = 0; at < response.size(); at += step) {
      EXPECT_FALSE(reader.complete()) << step;
      const absl::Status status =
          reader.Feed(absl::string_view(response).substr(at, step), [&](absl::string_view event) {
            events.emplace_back(event);
            return absl::OkStatus();
          });
      ASSERT_TRUE(status.ok()) << status;
    }
    EXPECT_EQ(events, (std::vector<std::string>{"one", "two", "three"})) << step;
    EXPECT_TRUE(reader.complete() && reader.keep_alive()) << step;
  }
}

TEST(SseReaderTest, WhatBreaksTheFramingIsAnError) {
  const std::string head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const std::string& bytes : {std::string("SMTP ready\r\n\r\n"), head + "x\r\n",
                                   head + "3\r\nabcdef\r\n", head + "b\r\nevent: ab\n\n\r\n",
                                   head + "5\r\ndata:\r\n0\r\n\r\n", head + "0\r\n\r\nmore"}) {
    SseReader reader;
    EXPECT_FALSE(reader.Feed(bytes, [](absl::string_view) { return absl::OkStatus(); }).ok())
        << bytes;
  }
}

TEST(SseReaderTest, AnErrorHasItsBody) {
  SseReader reader;
  const absl::Status status = reader.Feed(
      "HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbusy",
      [](absl::string_view) { return absl::OkStatus(); });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(reader.complete());
  EXPECT_EQ(reader.status(), 429);
  EXPECT_EQ(reader.body(), "busy");
  EXPECT_FALSE(reader.keep_alive());
}

}  // namespace
}  // namespace sluice::bench
