#include "services/model/stop_matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace sluice::model {
namespace {

using ::testing::HasSubstr;

StopMatcher Make(const std::vector<std::string>& stops, bool include_stop = false) {
  auto matcher = StopMatcher::Create(stops, include_stop);
  EXPECT_TRUE(matcher.ok()) << matcher.status();
  return *std::move(matcher);
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher = Make({"\n\nHuman:"});
  EXPECT_EQ(matcher.Feed("Hello").text, "Hello");
  EXPECT_EQ(matcher.Feed(" you\n").text, " you");
  EXPECT_EQ(matcher.Feed("\n").text, "");
  EXPECT_EQ(matcher.Feed("\n").text, "\n");  // two newlines are still held
  EXPECT_EQ(matcher.Feed("Hum").text, "");
  EXPECT_EQ(matcher.Feed("bug").text, "\n\nHumbug");
  EXPECT_EQ(matcher.Feed("\n\nHuman").text, "");
  const StopMatcher::Result result = matcher.Feed(": hi");
  EXPECT_EQ(result.text, "");
  EXPECT_EQ(result.stop, 0);
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, Table) {
  const struct {
    const char* name;
    std::vector<std::string> stops;
    std::string text;
    std::string without;  // emitted in all
    std::string with;     // emitted in all with include_stop
    std::optional<size_t> stop;
  } cases[] = {
      {"no stops", {}, "abc", "abc", "abc", {}},
      {"not there", {"x"}, "abc", "abc", "abc", {}},
      {"one byte", {"b"}, "abc", "a", "ab", 0},
      {"at the start", {"ab"}, "abc", "", "ab", 0},
      {"at the end", {"bc"}, "abc", "a", "abc", 0},
      {"half of one at the end", {"cd"}, "abc", "abc", "abc", {}},
      {"first to end wins", {"abcd", "bc"}, "xabcd", "xa", "xabc", 1},
      {"longest of those that end together", {"c", "bc", "abc"}, "xabc", "x", "xabc", 2},
      {"fails back into another stop", {"abcx", "bcd"}, "abcd", "a", "abcd", 1},
      {"overlaps itself", {"aab"}, "aaab", "a", "aaab", 0},
      {"fails back several times", {"ababc", "abd", "bd"}, "xababd", "xab", "xababd", 1},
      {"equal stops: the first", {"b", "b"}, "ab", "a", "ab", 0},
      {"characters of several bytes", {"。"}, "好。吗", "好", "好。", 0},
      {"shares bytes with a stop", {"ああ"}, "あい", "あい", "あい", {}},
  };
  for (const auto& c : cases) {
    for (const bool include_stop : {false, true}) {
      for (const size_t piece : {size_t{1}, size_t{2}, size_t{3}, c.text.size()}) {
        StopMatcher matcher = Make(c.stops, include_stop);
        std::string text;
        std::optional<size_t> stop;
        for (size_t i = 0; i < c.text.size(); i += piece) {
          const StopMatcher::Result result =
              matcher.Feed(absl::string_view(c.text).substr(i, piece));
          text += result.text;
          stop = result.stop;
        }
        text += matcher.Flush();
        EXPECT_EQ(text, include_stop ? c.with : c.without) << c.name << " in pieces of " << piece;
        EXPECT_EQ(stop, c.stop) << c.name << " in pieces of " << piece;
      }
    }
  }
}

TEST(StopMatcher, NothingComesAfterAStop) {
  StopMatcher matcher = Make({"b"}, /*include_stop=*/true);
  EXPECT_EQ(matcher.Feed("abab").text, "ab");
  const StopMatcher::Result after = matcher.Feed("ab");
  EXPECT_EQ(after.text, "");
  EXPECT_EQ(after.stop, 0);
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, ACopyGoesOnFromTheSameState) {
  StopMatcher matcher = Make({"abc"});
  EXPECT_EQ(matcher.Feed("xab").text, "x");
  StopMatcher copy = matcher;
  EXPECT_EQ(copy.Feed("c").stop, 0);
  EXPECT_EQ(matcher.Feed("d").text, "abd");
}

// Against a search of the whole text, on a small alphabet where everything overlaps.
TEST(StopMatcher, RandomTextsAgreeWithPlainSearch) {
  std::mt19937 random(11);
  const auto word = [&](size_t bytes_max) {
    std::string text(1 + random() % bytes_max, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops(1 + random() % 4);
    for (std::string& stop : stops) stop = word(6);
    const std::string text = word(24);
    size_t end = std::string::npos;
    size_t first = 0;
    for (size_t i = 0; i < stops.size(); ++i) {
      const size_t at = text.find(stops[i]);
      if (at == std::string::npos) continue;
      const size_t this_end = at + stops[i].size();
      if (this_end < end || (this_end == end && stops[i].size() > stops[first].size())) {
        end = this_end;
        first = i;
      }
    }
    StopMatcher matcher = Make(stops);
    std::string out;
    std::optional<size_t> stop;
    for (size_t i = 0; i < text.size();) {
      const size_t piece = 1 + random() % 4;
      const StopMatcher::Result result = matcher.Feed(absl::string_view(text).substr(i, piece));
      out += result.text;
      stop = result.stop;
      i += piece;
    }
    out += matcher.Flush();
    if (end == std::string::npos) {
      EXPECT_EQ(out, text) << "round " << round;
      EXPECT_FALSE(stop) << "round " << round;
    } else {
      EXPECT_EQ(out, text.substr(0, end - stops[first].size())) << "round " << round;
      ASSERT_TRUE(stop) << "round " << round;
      EXPECT_EQ(stops[*stop], stops[first]) << "round " << round;
    }
  }
}

TEST(StopMatcher, RefusesWhatItCannotBound) {
  const std::string longest(StopMatcher::kBytesMax, 'x');
  const struct {
    std::vector<std::string> stops;
    std::string error;  // empty: accepted
  } cases[] = {
      {std::vector<std::string>(StopMatcher::kCountMax, "x"), ""},
      {std::vector<std::string>(StopMatcher::kCountMax + 1, "x"), "stop: 17 strings"},
      {{longest}, ""},
      {{"a", longest + "x"}, "stop[1]: 1025 bytes"},
      {{"a", "b", ""}, "stop[2]: is empty"},
      {{"\xFF"}, "stop[0]: is not valid UTF-8"},
  };
  for (const auto& c : cases) {
    const auto matcher = StopMatcher::Create(c.stops, false);
    EXPECT_EQ(matcher.ok(), c.error.empty()) << matcher.status();
    EXPECT_THAT(std::string(matcher.status().message()), HasSubstr(c.error));
  }
}

}  // namespace
}  // namespace sluice::model
