#include "services/router/generation_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/router/api_error.h"
#include "services/router/fake_backend.h"
#include "services/router/openai_request.h"
#include "services/router/test_model.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Keeps what it is told; whole answers by index.
class Recorder final : public CallListener {
 public:
  void OnDelta(const ChoiceDelta& delta) override {
    ++num_deltas;
    if (answers.size() <= delta.index) answers.resize(delta.index + 1);
    EXPECT_FALSE(answers[delta.index].end.has_value()) << "a piece after the last";
    MergeDelta(delta, &answers[delta.index]);
  }
  void OnDone(const Timings&) override { ++num_done; }
  void OnError(const absl::Status& error) override { status = error; }

  std::vector<ChoiceDelta> answers;
  int num_deltas = 0;
  int num_done = 0;
  absl::Status status;
};

class GenerationCallTest : public ::testing::Test {
 protected:
  absl::StatusOr<PreparedRequest> PrepareBody(const std::string& body, bool chat) {
    auto parsed = chat ? ParseChatRequest(body) : ParseCompletionRequest(body);
    if (!parsed.ok()) return parsed.status();
    return Prepare(TestModel(), std::move(parsed->request),
                   {.kv_layout_hash = std::string(16, 'k'), .random_seed = 99});
  }
  absl::Status Start(const std::string& body, bool chat) {
    auto prepared = PrepareBody(body, chat);
    if (!prepared.ok()) return prepared.status();
    auto call = GenerationCall::Start(*std::move(prepared), *TestModel().tokenizer, &backend_,
                                      &recorder_, absl::InfiniteFuture());
    if (call.ok()) call_ = *std::move(call);
    return call.status();
  }
  absl::Status StartChat(const std::string& members) {
    return Start(R"({"messages": [{"role": "user", "content": "hi"}])" + members + "}", true);
  }
  absl::Status StartCompletion(const std::string& members) {
    return Start(R"({"prompt": "hi")" + members + "}", false);
  }
  void Give(RequestId id, const std::string& text, v1::Finish finish = v1::FINISH_UNSPECIFIED) {
    std::vector<uint32_t> ids = TestTokens(text);
    if (finish == v1::FINISH_STOP) ids.push_back(kTestEos);
    backend_.Give(id, ids, finish);
  }

  FakeBackend backend_;
  Recorder recorder_;
  std::unique_ptr<GenerationCall> call_;
};

TEST_F(GenerationCallTest, TellsReasoningFromContentAndCountsBoth) {
  ASSERT_TRUE(StartChat("").ok());
  backend_.cached_tokens = 2;
  Give(1, "hm");
  EXPECT_EQ(recorder_.answers[0].reasoning, "hm");
  Give(1, "</think>yes", v1::FINISH_STOP);
  ASSERT_EQ(recorder_.num_done, 1);
  EXPECT_EQ(recorder_.answers[0].content, "yes");
  EXPECT_FALSE(recorder_.answers[0].end->length);
  EXPECT_TRUE(std::holds_alternative<std::monostate>(recorder_.answers[0].end->stop_reason));
  const ApiUsage usage = call_->usage();
  EXPECT_EQ(usage.completion_tokens, TestTokens("hm</think>yes").size() + 1) << "and the end token";
  EXPECT_EQ(usage.reasoning_tokens, TestTokens("hm</think>").size());
  EXPECT_EQ(usage.cached_tokens, 2u);
}

TEST_F(GenerationCallTest, ReasoningSwitches) {
  const struct {
    const char* members;
    const char* reasoning;
    const char* content;
    int num_deltas;
  } cases[] = {
      {R"(, "include_reasoning": false)", "", "yes", 1},
      {R"(, "separate_reasoning": false)", "", "one two</think>yes", 3},
      {R"(, "stream_reasoning": false)", "one two", "yes", 1},
      {"", "one two", "yes", 3},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.members);
    recorder_ = {};
    ASSERT_TRUE(StartChat(c.members).ok());
    const RequestId id = backend_.next_id - 1;
    Give(id, "one");
    Give(id, " two");
    Give(id, "</think>yes", v1::FINISH_STOP);
    EXPECT_EQ(recorder_.answers[0].reasoning, c.reasoning);
    EXPECT_EQ(recorder_.answers[0].content, c.content);
    EXPECT_EQ(recorder_.num_deltas, c.num_deltas);
  }
}

TEST_F(GenerationCallTest, StopStringEndsTheAnswerAndItsRequest) {
  ASSERT_TRUE(StartCompletion(R"(, "stop": ["zz", "END"])").ok());
  Give(1, "go EN");
  EXPECT_EQ(recorder_.answers[0].content, "go ");
  Give(1, "D and more");
  EXPECT_EQ(recorder_.answers[0].content, "go ");
  EXPECT_EQ(std::get<std::string>(recorder_.answers[0].end->stop_reason), "END");
  EXPECT_EQ(recorder_.num_done, 1);
  EXPECT_EQ(backend_.num_cancelled, 1);
  EXPECT_LE(call_->usage().completion_tokens, TestTokens("go END").size() + 1);
}

TEST_F(GenerationCallTest, OwnStopTokenIsNamed) {
  const uint32_t id = TestTokens("a")[0];
  ASSERT_TRUE(StartCompletion(absl::StrCat(R"(, "stop_token_ids": [)", id, "]")).ok());
  backend_.Give(1, {TestTokens("b")[0], id}, v1::FINISH_STOP);
  EXPECT_EQ(recorder_.answers[0].content, "b");
  EXPECT_EQ(std::get<int32_t>(recorder_.answers[0].end->stop_reason), static_cast<int32_t>(id));
}

TEST_F(GenerationCallTest, LengthIsTold) {
  ASSERT_TRUE(StartCompletion("").ok());
  Give(1, "ab", v1::FINISH_LENGTH);
  EXPECT_TRUE(recorder_.answers[0].end->length);
  EXPECT_EQ(recorder_.answers[0].content, "ab");
}

TEST_F(GenerationCallTest, AnswersOfAPromptDifferInSeedAndShareIt) {
  ASSERT_TRUE(Start(R"({"prompt": ["a", "b"], "n": 2, "seed": 5})", false).ok());
  ASSERT_EQ(backend_.submitted.size(), 4u);
  std::vector<uint64_t> seeds;
  for (const auto& request : backend_.submitted) seeds.push_back(request.sampling.seed());
  EXPECT_THAT(seeds, ElementsAre(5, 6, 7, 8));
  EXPECT_EQ(backend_.submitted[0].prompt, backend_.submitted[1].prompt);
  EXPECT_NE(backend_.submitted[1].prompt, backend_.submitted[2].prompt);
  for (const RequestId id : {3, 1, 4}) Give(id, "x", v1::FINISH_STOP);
  EXPECT_EQ(recorder_.num_done, 0);
  Give(2, "y", v1::FINISH_STOP);
  EXPECT_EQ(recorder_.num_done, 1);
  EXPECT_EQ(recorder_.answers[1].content, "y");
  EXPECT_EQ(call_->usage().prompt_tokens, 2 * backend_.submitted[0].prompt->ids.size())
      << "each prompt counts once";
}

TEST_F(GenerationCallTest, OneFailureEndsAllAnswers) {
  ASSERT_TRUE(StartChat(R"(, "n": 3)").ok());
  backend_.Fail(2, absl::UnavailableError("gone"));
  EXPECT_EQ(recorder_.status, absl::UnavailableError("gone"));
  EXPECT_TRUE(backend_.running.empty());
  EXPECT_EQ(recorder_.num_done, 0);
}

TEST_F(GenerationCallTest, DestroyingItCancels) {
  ASSERT_TRUE(StartChat(R"(, "n": 2)").ok());
  call_.reset();
  EXPECT_EQ(backend_.num_cancelled, 2);
}

TEST_F(GenerationCallTest, RefusalLeavesNothingRunning) {
  backend_.refusal = absl::ResourceExhaustedError("full");
  EXPECT_EQ(StartChat("").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(backend_.running.empty());
}

TEST_F(GenerationCallTest, APromptThatNoInstanceHoldsIsTooLong) {
  backend_.refusal = absl::OutOfRangeError("more than the largest instances hold");
  for (const bool chat : {false, true}) {
    const ApiError error = ToApiError(chat ? StartChat("") : StartCompletion(""));
    EXPECT_EQ(error.http_status, 400);
    EXPECT_EQ(error.type, "invalid_request_error");
    EXPECT_EQ(error.message, "more than the largest instances hold");
    EXPECT_EQ(error.param, chat ? "messages" : "prompt");
    EXPECT_EQ(error.code, "context_length_exceeded");
  }
}

TEST_F(GenerationCallTest, PreparationFillsDefaults) {
  ASSERT_TRUE(StartChat("").ok());
  const GenerationRequest& request = backend_.submitted[0];
  EXPECT_FLOAT_EQ(request.sampling.temperature(), 0.6f) << "of generation_config.json";
  EXPECT_FLOAT_EQ(request.sampling.top_p(), 0.95f);
  EXPECT_EQ(request.sampling.seed(), 99u);
  EXPECT_THAT(request.sampling.stop_token_ids(), ElementsAre(kTestEos));
  EXPECT_EQ(request.sampling.max_tokens(), 2048 - request.prompt->ids.size());
  EXPECT_EQ(request.sampling.num_logprobs(), -1);
  EXPECT_EQ(request.prompt->page_hash_seed.size(), 16u);
  EXPECT_EQ(request.prompt->page_hashes.size(), request.prompt->ids.size() / 64 * 16);
}

TEST_F(GenerationCallTest, PreparationRespectsTheContext) {
  const auto ids = [](int count) {
    std::string list = "[5";
    for (int i = 1; i < count; ++i) list += ",6";
    return list + "]";
  };
  const auto code = [&](const std::string& body) {
    return ToApiError(PrepareBody(body, false).status()).code;
  };
  EXPECT_EQ(code("{\"prompt\": " + ids(2047) + "}"), "") << "max_tokens was not asked for";
  EXPECT_EQ(code("{\"prompt\": " + ids(2048) + "}"), "context_length_exceeded");
  EXPECT_EQ(code("{\"prompt\": " + ids(2040) + ", \"max_tokens\": 8}"), "");
  EXPECT_EQ(code("{\"prompt\": " + ids(2041) + ", \"max_tokens\": 8}"), "context_length_exceeded");
  EXPECT_EQ(code("{\"prompt\": " + ids(2) + ", \"max_tokens\": 2048}"), "context_length_exceeded");

  auto cut = PrepareBody(
      "{\"prompt\": " + ids(3000) + ", \"max_tokens\": 8, \"truncate_prompt_tokens\": -1}", false);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->prompts[0].prompt->ids.size(), 2040u);
  EXPECT_EQ(cut->prompts[0].prompt->ids[0], 6u) << "cut from the left";
  cut = PrepareBody("{\"prompt\": " + ids(30) + ", \"truncate_prompt_tokens\": 10}", false);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->prompts[0].prompt->ids.size(), 10u);
  cut = PrepareBody("{\"prompt\": \"one two three four\", \"truncate_prompt_tokens\": 3}", false);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->prompts[0].prompt->ids[0], 0u) << "the beginning-of-text token stays";
}

TEST_F(GenerationCallTest, PreparationNamesWhatTheModelDoesNotHave) {
  const struct {
    const char* body;
    const char* param;
    const char* message;
  } cases[] = {
      {R"({"prompt": "a", "model": "other"})", "model", "`other` does not exist"},
      {R"({"prompt": [1024]})", "prompt", "ids 0 to 1023"},
      {R"({"prompt": "a", "stop_token_ids": [1024]})", "stop_token_ids", "1024"},
      {R"({"prompt": "a", "logit_bias": {"1024": 1}})", "logit_bias", "1024"},
      {R"({"prompt": "", "add_special_tokens": false})", "prompt", "empty"},
  };
  for (const auto& c : cases) {
    const ApiError error = ToApiError(PrepareBody(c.body, false).status());
    EXPECT_EQ(error.param, c.param) << c.body;
    EXPECT_THAT(error.message, HasSubstr(c.message)) << c.body;
  }
}

TEST_F(GenerationCallTest, EndTokensCountAsStopTokens) {
  static_assert(kTestEos < 127, "so that the lists below have it, or not, as they say");
  const auto stops = [&](uint32_t first, int count, const char* members) {
    std::string body =
        absl::StrCat(R"({"prompt": "a")", members, R"(, "stop_token_ids": [)", first);
    for (int i = 1; i < count; ++i) absl::StrAppend(&body, ",", first + i);
    return PrepareBody(body + "]}", false);
  };
  const auto num_stops = [](const absl::StatusOr<PreparedRequest>& prepared) {
    return prepared.ok() ? prepared->sampling.stop_token_ids_size() : -1;
  };
  EXPECT_EQ(num_stops(stops(200, 127, "")), 128);
  EXPECT_EQ(num_stops(stops(0, 128, "")), 128) << "the end token is among them";
  EXPECT_EQ(num_stops(stops(200, 128, R"(, "ignore_eos": true)")), 128);
  const ApiError error = ToApiError(stops(200, 128, "").status());
  EXPECT_EQ(error.http_status, 400);
  EXPECT_EQ(error.param, "stop_token_ids");
  EXPECT_THAT(error.message, HasSubstr("129 with the model's end tokens; at most 128"));
}

TEST_F(GenerationCallTest, TenantsAndSaltsShareNoPages) {
  const std::string body = R"({"prompt": [5, 6])";
  const auto seed = [&](const std::string& members, const std::string& tenant) {
    auto parsed = ParseCompletionRequest(body + members + "}");
    auto prepared = Prepare(TestModel(), std::move(parsed->request),
                            {.kv_layout_hash = std::string(16, 'k'), .tenant = tenant});
    return prepared->prompts[0].prompt->page_hash_seed;
  };
  EXPECT_EQ(seed("", ""), seed("", ""));
  EXPECT_NE(seed("", ""), seed("", "t"));
  EXPECT_NE(seed("", ""), seed(R"(, "cache_salt": "t")", ""));
  EXPECT_NE(seed("", "t"), seed(R"(, "cache_salt": "t")", ""));
  EXPECT_EQ(seed(R"(, "cache_salt": "s")", "t"), seed(R"(, "cache_salt": "s")", "t"));
}

}  // namespace
}  // namespace sluice::router
