#include "services/base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace sluice {
namespace {

using ::testing::HasSubstr;

TEST(ParseJsonTest, ReportsWhatIsWrong) {
  const struct {
    const char* name;
    std::string text;
    const char* wanted;
  } cases[] = {
      {"empty", "", "x.json: is not JSON"},
      {"cut short", "{\"a\": 1", "line 1, column 8"},
      {"trailing", "{} {}", "is not JSON"},
      {"not a number", "{\"a\": NaN}", "is not JSON"},
      {"overflow", "[1e999]", "is not JSON"},
      {"bad UTF-8", "[\"\xff\"]", "is not JSON"},
      {"deep", std::string(100000, '['), "deeper than 64"},
      {"deep objects",
       [] {
         std::string text;
         for (int i = 0; i < 1000; ++i) text += "{\"a\":";
         return text;
       }(),
       "deeper than 64"},
  };
  for (const auto& c : cases) {
    const auto json = ParseJson(c.text, "x.json");
    EXPECT_EQ(json.status().code(), absl::StatusCode::kInvalidArgument) << c.name;
    EXPECT_THAT(json.status().message(), HasSubstr(c.wanted)) << c.name;
  }
  EXPECT_EQ(ParseJson("{\"a\": [1, 2.5]}", "x.json")->at("a").at(1), 2.5);
}

std::string Nested(int levels, const std::string& inner) {
  return std::string(static_cast<size_t>(levels), '[') + inner +
         std::string(static_cast<size_t>(levels), ']');
}

TEST(ParseJsonTest, CountsLevelsOutsideOfStringsOnly) {
  EXPECT_TRUE(ParseJson(Nested(64, "1"), "x.json").ok());
  EXPECT_THAT(ParseJson(Nested(65, ""), "x.json").status().message(), HasSubstr("deeper than 64"));
  EXPECT_TRUE(ParseJson(Nested(64, R"("[[{{\\")"), "x.json").ok());
  EXPECT_TRUE(ParseJson(Nested(64, R"("\"[[{{")"), "x.json").ok());
  EXPECT_THAT(ParseJson(Nested(64, R"("\\",[)"), "x.json").status().message(),
              HasSubstr("deeper than 64"));
  EXPECT_THAT(ParseJson("[\"\\", "x.json").status().message(), HasSubstr("is not JSON"));
}

TEST(ParseJsonTest, ErrorsAreShortHoweverLongTheTextIs) {
  for (const std::string& text : {"[\"" + std::string(1 << 20, 'x'), std::string(1 << 20, '9')}) {
    const std::string error(ParseJson(text, "x.json").status().message());
    EXPECT_THAT(error, HasSubstr("is not JSON"));
    EXPECT_LT(error.size(), 350u);
  }
}

// Half a million objects took minutes once, and a thread of the router with them.
TEST(ParseJsonTest, ListsOfManyObjectsTakeTimeInProportion) {
  constexpr size_t kObjects = 500000;
  std::string text = "[{}";
  for (size_t i = 1; i < kObjects; ++i) text += ",{}";
  const auto json = ParseJson(text + "]", "x.json");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(json->size(), kObjects);
}

TEST(JsonForMessageTest, IsShortAndPrintable) {
  EXPECT_EQ(JsonForMessage(nlohmann::json::parse("{\"a\": [1]}")), "{\"a\":[1]}");
  EXPECT_LT(JsonForMessage(std::string(1000, 'x')).size(), 80u);
  EXPECT_EQ(JsonForMessage("\n\xc3\xa9"), "\"\\n\\u00e9\"");
}

}  // namespace
}  // namespace sluice
