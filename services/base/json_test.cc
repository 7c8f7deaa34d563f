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

TEST(JsonForMessageTest, IsShortAndPrintable) {
  EXPECT_EQ(JsonForMessage(nlohmann::json::parse("{\"a\": [1]}")), "{\"a\":[1]}");
  EXPECT_LT(JsonForMessage(std::string(1000, 'x')).size(), 80u);
  EXPECT_EQ(JsonForMessage("\n\xc3\xa9"), "\"\\n\\u00e9\"");
}

}  // namespace
}  // namespace sluice
