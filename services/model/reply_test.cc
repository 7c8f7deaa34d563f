#include "services/model/reply.h"

#include <gtest/gtest.h>

#include "services/model/test_tokenizer.h"

namespace sluice::model {
namespace {

ReplyDelta Feed(const Tokenizer& tokenizer, const std::string& text, const ReplyOptions& options,
                std::optional<size_t>* stop) {
  auto reply = Reply::Create(&tokenizer, options);
  EXPECT_TRUE(reply.ok()) << reply.status();
  const auto ids = tokenizer.Encode(text, {});
  EXPECT_TRUE(ids.ok());
  ReplyDelta all;
  const auto take = [&all](const ReplyDelta& delta) {
    all.reasoning += delta.reasoning;
    all.content += delta.content;
  };
  for (const int32_t id : *ids) take(reply->Feed(id));
  take(reply->Finish());
  *stop = reply->stop();
  return all;
}

TEST(Reply, TellsReasoningFromContentAndCutsContentOnly) {
  const auto tokenizer = TestTokenizer();
  const struct {
    const char* name;
    const char* text;
    ReplyOptions options;
    const char* reasoning;
    const char* content;
    std::optional<size_t> stop;
  } cases[] = {
      {"all content", "a</think>b", {}, "", "a</think>b", std::nullopt},
      {"split",
       "a</think>b",
       {.in_thinking = true, .split_reasoning = true},
       "a",
       "b",
       std::nullopt},
      {"a stop string in the reasoning counts not",
       "stop now</think>go stop on",
       {.in_thinking = true, .split_reasoning = true, .stops = {"x", "stop"}},
       "stop now",
       "go ",
       1},
      {"included", "go stop on", {.stops = {"stop"}, .include_stop = true}, "", "go stop", 0},
      {"half a stop string at the end comes out",
       "go st",
       {.stops = {"stop"}},
       "",
       "go st",
       std::nullopt},
      {"never left the reasoning",
       "a b",
       {.in_thinking = true, .split_reasoning = true},
       "a b",
       "",
       std::nullopt},
  };
  for (const auto& c : cases) {
    std::optional<size_t> stop;
    const ReplyDelta all = Feed(*tokenizer, c.text, c.options, &stop);
    EXPECT_EQ(all.reasoning, c.reasoning) << c.name;
    EXPECT_EQ(all.content, c.content) << c.name;
    EXPECT_EQ(stop, c.stop) << c.name;
  }
}

TEST(Reply, StopStringsNeedATokenizer) {
  EXPECT_TRUE(Reply::Create(nullptr, {}).ok());
  EXPECT_EQ(Reply::Create(nullptr, {.stops = {"x"}}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace sluice::model
