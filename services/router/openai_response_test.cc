#include "services/router/openai_response.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "services/router/api_error.h"
#include "services/router/json_writer.h"
#include "services/router/retry_hint.h"
#include "services/router/test_model.h"

namespace sluice::router {
namespace {

using Json = nlohmann::json;

std::string Quoted(absl::string_view text) {
  std::string out;
  AppendJsonString(text, &out);
  return out;
}

TEST(JsonWriter, EscapesWhatJsonWantsEscaped) {
  EXPECT_EQ(Quoted(""), R"("")");
  EXPECT_EQ(Quoted("a\"b\\c/"), R"("a\"b\\c/")");
  EXPECT_EQ(Quoted("\n\r\t"), R"("\n\r\t")");
  EXPECT_EQ(Quoted(absl::string_view("\0\x1f\x7f", 3)), "\"\\u0000\\u001f\x7f\"");
  EXPECT_EQ(Quoted("é日😀"), "\"é日😀\"");
  EXPECT_EQ(Quoted("a\xFFz\xE6\x97"), "\"a\xEF\xBF\xBDz\xEF\xBF\xBD\"");
}

TEST(JsonWriter, EveryByteSurvivesAParser) {
  for (int byte = 0; byte < 128; ++byte) {
    const std::string text = std::string("x") + static_cast<char>(byte);
    EXPECT_EQ(Json::parse(Quoted(text)).get<std::string>(), text) << byte;
  }
}

TEST(JsonWriter, WritesLogprobsThatJsonKnows) {
  const struct {
    float value;
    const char* text;
  } cases[] = {{0, "0.0"},
               {-0.5f, "-0.5"},
               {-12, "-12.0"},
               {-0.1f, "-0.1"},
               {-std::numeric_limits<float>::infinity(), "-9999.0"},
               {std::numeric_limits<float>::quiet_NaN(), "-9999.0"},
               {std::numeric_limits<float>::infinity(), "9999.0"},
               {-1e-30f, "-1e-30"}};
  for (const auto& c : cases) {
    std::string out;
    AppendLogprob(c.value, &out);
    EXPECT_EQ(out, c.text);
  }
}

ResponseHead Head(bool chat) {
  return {.chat = chat,
          .id = chat ? "chatcmpl-1" : "cmpl-1",
          .created = 7,
          .model = "tiny",
          .fingerprint = "fp_1",
          .tokenizer = TestModel().tokenizer.get()};
}

constexpr char kChatChunk[] =
    R"(data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"tiny","system_fingerprint":"fp_1","choices":[)";

TEST(ChunkWriter, StreamsAChatAsOpenAiDoes) {
  ChunkWriter writer(Head(true));
  std::string out;
  writer.Begin(0, nullptr, &out);
  writer.Delta({.reasoning = "hm"}, nullptr, &out);
  writer.Delta({.content = "a\nb"}, nullptr, &out);
  writer.Delta({.content = "!", .end = ChoiceEnd{.stop_reason = std::string("STOP")}}, nullptr,
               &out);
  writer.Usage(
      {.prompt_tokens = 5, .completion_tokens = 3, .cached_tokens = 4, .reasoning_tokens = 1},
      &out);
  ChunkWriter::Done(&out);
  const std::string chunk = kChatChunk;
  EXPECT_EQ(
      out,
      chunk +
          R"({"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})" +
          "\n\n" + chunk +
          R"({"index":0,"delta":{"reasoning_content":"hm","reasoning":"hm"},"logprobs":null,"finish_reason":null}]})" +
          "\n\n" + chunk +
          R"({"index":0,"delta":{"content":"a\nb"},"logprobs":null,"finish_reason":null}]})" +
          "\n\n" + chunk +
          R"({"index":0,"delta":{"content":"!"},"logprobs":null,"finish_reason":"stop","stop_reason":"STOP","matched_stop":"STOP"}]})" +
          "\n\n" + chunk +
          R"(],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":1},"prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":1}})" +
          "\n\ndata: [DONE]\n\n");
}

TEST(ChunkWriter, StreamsACompletionWithEchoIdsAndUsage) {
  ResponseHead head = Head(false);
  head.token_ids = true;
  ChunkWriter writer(head);
  std::string out;
  const PromptEcho echo{.text = "Once", .token_ids = {5, 6}};
  writer.Begin(1, &echo, &out);
  const ApiUsage usage{.prompt_tokens = 2, .completion_tokens = 1};
  writer.Delta({.index = 1, .content = " upon", .token_ids = {9}, .end = ChoiceEnd{.length = true}},
               &usage, &out);
  const std::string first = out.substr(6, out.find("\n\n") - 6);
  const std::string second = out.substr(out.find("\n\n") + 8);
  const Json begin = Json::parse(first), delta = Json::parse(second);
  EXPECT_EQ(begin["choices"][0], Json::parse(R"({"index": 1, "text": "Once", "logprobs": null,
      "finish_reason": null, "prompt_token_ids": [5, 6]})"));
  EXPECT_EQ(delta["choices"][0], Json::parse(R"({"index": 1, "text": " upon", "logprobs": null,
      "finish_reason": "length", "stop_reason": null, "matched_stop": null, "token_ids": [9]})"));
  EXPECT_EQ(delta["usage"]["total_tokens"], 3);
}

TEST(ResponseJson, TellsAChatFieldByField) {
  const ChoiceDelta choices[] = {
      {.index = 0, .reasoning = "because", .content = "yes", .end = ChoiceEnd{}},
      {.index = 1, .content = "", .end = ChoiceEnd{.stop_reason = 42}}};
  const Json json = Json::parse(
      ResponseJson(Head(true), choices, {}, 2, {.prompt_tokens = 3, .completion_tokens = 2}));
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_EQ(json["choices"][0], Json::parse(R"({"index": 0, "message": {"role": "assistant",
      "content": "yes", "refusal": null, "reasoning_content": "because", "reasoning": "because"},
      "logprobs": null, "finish_reason": "stop", "stop_reason": null, "matched_stop": null})"));
  EXPECT_EQ(json["choices"][1]["message"]["reasoning_content"], nullptr);
  EXPECT_EQ(json["choices"][1]["stop_reason"], 42);
  EXPECT_EQ(json["usage"]["prompt_cache_miss_tokens"], 3);
}

TEST(ResponseJson, WritesLogprobsInBothShapes) {
  const int32_t a = static_cast<int32_t>(TestTokens("a")[0]);
  const int32_t b = static_cast<int32_t>(TestTokens("b")[0]);
  const ChoiceDelta choices[] = {
      {.content = "ab",
       .token_ids = {a, b},
       .logprobs = {{.id = a, .logprob = -0.5f, .top = {{a, -0.5f}, {b, -1.5f}}},
                    {.id = b, .logprob = -2, .top = {{a, -1}}}},
       .end = ChoiceEnd{}}};
  ResponseHead head = Head(true);
  head.logprobs = true;
  const Json chat = Json::parse(ResponseJson(head, choices, {}, 1, {}));
  EXPECT_EQ(chat["choices"][0]["logprobs"], Json::parse(R"({"content": [
      {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
          {"token": "a", "logprob": -0.5, "bytes": [97]},
          {"token": "b", "logprob": -1.5, "bytes": [98]}]},
      {"token": "b", "logprob": -2.0, "bytes": [98], "top_logprobs": [
          {"token": "a", "logprob": -1.0, "bytes": [97]}]}], "refusal": null})"));
  head.chat = false;
  const Json text = Json::parse(ResponseJson(head, choices, {}, 1, {}));
  EXPECT_EQ(text["choices"][0]["logprobs"], Json::parse(R"({"tokens": ["a", "b"],
      "token_logprobs": [-0.5, -2.0],
      "top_logprobs": [{"a": -0.5, "b": -1.5}, {"a": -1.0, "b": -2.0}], "text_offset": [0, 1]})"));
  head.tokens_as_ids = true;
  const Json ids = Json::parse(ResponseJson(head, choices, {}, 1, {}));
  EXPECT_EQ(ids["choices"][0]["logprobs"]["tokens"][0], absl::StrCat("token_id:", a));
}

TEST(ApiError, HasTheStatusOfItsCode) {
  const struct {
    absl::Status status;
    int http_status;
    const char* type;
    const char* code;
    int64_t retry_after_s;
  } cases[] = {
      {FieldError("n", "n is 0"), 400, "invalid_request_error", "", 0},
      {ContextLengthError("messages", 9, 0, 8), 400, "invalid_request_error",
       "context_length_exceeded", 0},
      {absl::UnauthenticatedError("x"), 401, "authentication_error", "invalid_api_key", 0},
      {absl::PermissionDeniedError("x"), 403, "permission_error", "", 0},
      {UnknownModelError("m"), 404, "not_found_error", "model_not_found", 0},
      {absl::ResourceExhaustedError("x"), 429, "rate_limit_error", "", 1},
      {WithRetryAfter(absl::UnavailableError("x"), absl::Milliseconds(2100)), 503,
       "overloaded_error", "", 3},
      {absl::DeadlineExceededError("x"), 504, "timeout_error", "", 0},
      {absl::InternalError("x"), 500, "server_error", "", 0},
  };
  for (const auto& c : cases) {
    const ApiError error = ToApiError(c.status);
    EXPECT_EQ(error.http_status, c.http_status) << c.status;
    EXPECT_EQ(error.type, c.type) << c.status;
    EXPECT_EQ(error.code, c.code) << c.status;
    EXPECT_EQ(error.retry_after_s, c.retry_after_s) << c.status;
  }
  EXPECT_EQ(
      ErrorJson(ToApiError(FieldError("n", "n is \"0\""))),
      R"({"error":{"message":"n is \"0\"","type":"invalid_request_error","param":"n","code":null}})");
}

}  // namespace
}  // namespace sluice::router
