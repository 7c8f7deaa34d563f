#include "services/router/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "services/router/api_error.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

// A chat request with these further members.
std::string Chat(const std::string& members) {
  return R"({"messages": [{"role": "user", "content": "hi"}])" +
         (members.empty() ? "" : ", " + members) + "}";
}
std::string Completion(const std::string& members) {
  return R"({"prompt": "hi")" + (members.empty() ? "" : ", " + members) + "}";
}

ApiRequest Parsed(const std::string& body) {
  const auto parsed = ParseChatRequest(body);
  EXPECT_TRUE(parsed.ok()) << body << ": " << parsed.status();
  return parsed.ok() ? parsed->request : ApiRequest{};
}
ApiRequest ParsedCompletion(const std::string& body) {
  const auto parsed = ParseCompletionRequest(body);
  EXPECT_TRUE(parsed.ok()) << body << ": " << parsed.status();
  return parsed.ok() ? parsed->request : ApiRequest{};
}

TEST(OpenAiRequest, LeavesDefaultsUnset) {
  const ApiRequest request = Parsed(Chat(""));
  EXPECT_TRUE(request.chat);
  ASSERT_EQ(request.messages.size(), 1u);
  EXPECT_EQ(request.messages[0].role, "user");
  EXPECT_EQ(request.messages[0].content, "hi");
  EXPECT_FALSE(request.sampling.temperature.has_value());
  EXPECT_FALSE(request.sampling.seed.has_value());
  EXPECT_FALSE(request.sampling.max_tokens.has_value());
  EXPECT_EQ(request.sampling.num_logprobs, -1);
  EXPECT_EQ(request.n, 1u);
  EXPECT_FALSE(request.stream);
  EXPECT_TRUE(request.include_reasoning && request.separate_reasoning && request.stream_reasoning);
  EXPECT_TRUE(request.skip_special_tokens);
  EXPECT_EQ(ParsedCompletion(Completion("")).sampling.max_tokens, std::nullopt);
  EXPECT_EQ(ParsedCompletion(Completion("")).sampling.max_tokens_default, 16u);
}

TEST(OpenAiRequest, TellsZeroFromUnset) {
  EXPECT_EQ(Parsed(Chat(R"("temperature": 0)")).sampling.temperature, 0.0f);
  EXPECT_EQ(Parsed(Chat(R"("temperature": null)")).sampling.temperature, std::nullopt);
  EXPECT_EQ(Parsed(Chat(R"("top_k": -1)")).sampling.top_k, 0);
  EXPECT_EQ(Parsed(Chat(R"("top_k": 0)")).sampling.top_k, 0);
}

TEST(OpenAiRequest, ReadsSamplingFields) {
  const ApiRequest request = Parsed(Chat(
      R"("temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "top_k": 7, "repetition_penalty": 1.5,
         "presence_penalty": -2, "frequency_penalty": 2, "max_tokens": 5, "max_completion_tokens": 9,
         "min_tokens": 2, "stop_token_ids": [3, 4], "ignore_eos": true, "n": 3,
         "logit_bias": {"5": -100, "6": 1.5}, "logprobs": true, "top_logprobs": 2,
         "skip_special_tokens": false, "include_stop_str_in_output": true, "return_token_ids": true,
         "priority": 2, "cache_salt": "s", "request_id": "r1", "truncate_prompt_tokens": -1,
         "include_reasoning": false, "separate_reasoning": false, "stream_reasoning": false,
         "chat_template_kwargs": {"thinking": true}, "return_tokens_as_token_ids": true)"));
  const SamplingOptions& sampling = request.sampling;
  EXPECT_EQ(sampling.temperature, 0.5f);
  EXPECT_EQ(sampling.top_p, 0.25f);
  EXPECT_EQ(sampling.min_p, 0.125f);
  EXPECT_EQ(sampling.top_k, 7);
  EXPECT_EQ(sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(sampling.presence_penalty, -2.0f);
  EXPECT_EQ(sampling.frequency_penalty, 2.0f);
  EXPECT_EQ(sampling.max_tokens, 9u) << "max_tokens is the deprecated name";
  EXPECT_EQ(sampling.min_tokens, 2u);
  EXPECT_THAT(sampling.stop_token_ids, ElementsAre(3, 4));
  EXPECT_TRUE(sampling.ignore_eos);
  EXPECT_THAT(sampling.logit_bias, ElementsAre(Pair(5, -100.0f), Pair(6, 1.5f)));
  EXPECT_EQ(sampling.num_logprobs, 2);
  EXPECT_EQ(request.n, 3u);
  EXPECT_FALSE(request.skip_special_tokens);
  EXPECT_TRUE(request.include_stop && request.return_token_ids && request.tokens_as_ids);
  EXPECT_EQ(request.priority, 2u);
  EXPECT_EQ(request.cache_salt, "s");
  EXPECT_EQ(request.request_id, "r1");
  EXPECT_EQ(request.truncate_prompt_tokens, -1);
  EXPECT_FALSE(request.include_reasoning || request.separate_reasoning || request.stream_reasoning);
  EXPECT_TRUE(request.thinking);
}

TEST(OpenAiRequest, ReadsSeedsOfAnySign) {
  const struct {
    const char* json;
    uint64_t seed;
  } cases[] = {{"0", 0},
               {"-1", UINT64_MAX},
               {"-9223372036854775808", uint64_t{1} << 63},
               {"18446744073709551615", UINT64_MAX},
               {"7.0", 7}};
  for (const auto& c : cases) {
    EXPECT_EQ(Parsed(Chat(std::string("\"seed\": ") + c.json)).sampling.seed, c.seed) << c.json;
  }
}

TEST(OpenAiRequest, ReadsContentAsTextOrParts) {
  const ApiRequest request = Parsed(R"({"messages": [
      {"role": "developer", "content": "be kind"},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": []},
      {"role": "user", "name": "me", "content": []}]})");
  ASSERT_EQ(request.messages.size(), 4u);
  EXPECT_EQ(request.messages[0].role, "system");
  EXPECT_EQ(request.messages[1].content, "a\nb");
  EXPECT_EQ(request.messages[2].content, "") << "reasoning of the history is dropped";
  EXPECT_EQ(request.messages[3].content, "");
}

TEST(OpenAiRequest, ReadsStopAsTextOrList) {
  EXPECT_THAT(Parsed(Chat(R"("stop": "x")")).stop, ElementsAre("x"));
  EXPECT_THAT(Parsed(Chat(R"("stop": ["x", "yz"])")).stop, ElementsAre("x", "yz"));
  EXPECT_THAT(Parsed(Chat(R"("stop": [])")).stop, IsEmpty());
}

TEST(OpenAiRequest, ReadsEveryShapeOfPrompt) {
  using Ids = std::vector<int32_t>;
  const auto prompts = [](const std::string& prompt) {
    return ParsedCompletion("{\"prompt\": " + prompt + "}").prompts;
  };
  EXPECT_THAT(prompts(R"("")"), ElementsAre(PromptInput("")));
  EXPECT_THAT(prompts(R"(["a", "b"])"), ElementsAre(PromptInput("a"), PromptInput("b")));
  EXPECT_THAT(prompts("[1, 2]"), ElementsAre(PromptInput(Ids{1, 2})));
  EXPECT_THAT(prompts("[[1, 2], [3]]"), ElementsAre(PromptInput(Ids{1, 2}), PromptInput(Ids{3})));
}

TEST(OpenAiRequest, ReadsStreamOptions) {
  const ApiRequest request = Parsed(Chat(R"("stream": true,
              "stream_options": {"include_usage": true, "continuous_usage_stats": true})"));
  EXPECT_TRUE(request.stream && request.include_usage && request.continuous_usage);
}

TEST(OpenAiRequest, IgnoresAndListsUnknownNames) {
  const auto parsed = ParseChatRequest(
      R"({"messages": [{"role": "user", "content": "a", "mood": 1},
                       {"role": "user", "content": "b", "mood": 2}],
          "wibble": {}, "user": "u", "parallel_tool_calls": true, "metadata": null,
          "chat_template_kwargs": {"lang": "de"}})");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->ignored,
              ElementsAre("metadata", "wibble", "messages[].mood", "chat_template_kwargs.lang"));
}

TEST(OpenAiRequest, ListsNoMoreUnknownNamesOfMessagesThanAnybodyReads) {
  std::string messages;
  for (int i = 0; i < 1000; ++i) {
    absl::StrAppend(&messages, i > 0 ? "," : "", R"({"role": "user", "content": "a", "mood)", i,
                    R"(": 1})");
  }
  const auto parsed = ParseChatRequest(absl::StrCat("{\"messages\": [", messages, "]}"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->request.messages.size(), 1000u);
  EXPECT_EQ(parsed->ignored.size(), 128u);
}

TEST(OpenAiRequest, AcceptsNeutralValuesOfWhatItCannotDo) {
  for (const char* member :
       {R"("tools": [])", R"("tools": null)", R"("tool_choice": "none")",
        R"("tool_choice": "auto")", R"("response_format": {"type": "text"})",
        R"("response_format": null)", R"("bad_words": [])", R"("suffix": "")", R"("best_of": 1)",
        R"("reasoning_effort": "medium")", R"("add_generation_prompt": true)",
        R"("continue_final_message": false)"}) {
    EXPECT_TRUE(ParseChatRequest(Chat(member)).ok()) << member;
  }
}

struct Refusal {
  const char* member;
  const char* param;
  const char* message;
};

void ExpectRefused(const absl::Status& status, const Refusal& wanted) {
  ASSERT_FALSE(status.ok()) << wanted.member;
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << wanted.member;
  const ApiError error = ToApiError(status);
  EXPECT_EQ(error.param, wanted.param) << wanted.member;
  EXPECT_THAT(error.message, HasSubstr(wanted.message)) << wanted.member;
}

TEST(OpenAiRequest, RefusesWhatIsWrongInAnyRequest) {
  const Refusal cases[] = {
      {R"("temperature": "hot")", "temperature",
       "temperature is \"hot\", wanted a number from 0 to 100"},
      {R"("temperature": -0.1)", "temperature", "temperature is -0.1"},
      {R"("temperature": true)", "temperature", "wanted a number"},
      {R"("top_p": 0)", "top_p", "wanted a number above 0 and up to 1"},
      {R"("top_p": 1e-60)", "top_p", "above 0"},  // 0 as a float
      {R"("top_p": 1.01)", "top_p", "top_p is 1.01"},
      {R"("min_p": 2)", "min_p", "from 0 to 1"},
      {R"("presence_penalty": 2.5)", "presence_penalty", "from -2 to 2"},
      {R"("repetition_penalty": 0)", "repetition_penalty", "above 0"},
      {R"("top_k": -2)", "top_k", "top_k is -2"},
      {R"("top_k": 1.5)", "top_k", "a whole number"},
      {R"("max_tokens": 0)", "max_tokens", "max_tokens is 0, wanted a whole number from 1"},
      {R"("max_tokens": 4294967296)", "max_tokens", "4294967295"},
      {R"("max_tokens": 5, "min_tokens": 6)", "min_tokens", "at most max_tokens (5)"},
      {R"("n": 0)", "n", "n is 0"},
      {R"("n": 129)", "n", "from 1 to 128"},
      {R"("n": "2")", "n", "n is \"2\""},
      {R"("seed": 18446744073709551616)", "seed", "seed is 1.8446744073709552e+19"},
      {R"("seed": 1.5)", "seed", "seed is 1.5"},
      {R"("seed": "1")", "seed", "seed is \"1\""},
      {R"("stop": 5)", "stop", "stop is 5"},
      {R"("stop": [5])", "stop", "a text or a list of texts"},
      {R"("stop": "")", "stop", "stop[0]"},
      {R"("stop": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"])",
       "stop", "16"},
      {R"("logit_bias": [])", "logit_bias", "wanted an object"},
      {R"("logit_bias": {"x": 1})", "logit_bias", "logit_bias has \"x\": 1"},
      {R"("logit_bias": {"1": 101})", "logit_bias", "from -100 to 100"},
      {R"("logit_bias": {"-1": 1})", "logit_bias", "\"-1\": 1"},
      {R"("stop_token_ids": 3)", "stop_token_ids", "a list of at most 128"},
      {R"("stop_token_ids": [1, -3])", "stop_token_ids", "stop_token_ids[1] is -3"},
      {R"("ignore_eos": 1)", "ignore_eos", "ignore_eos is 1, wanted true or false"},
      {R"("stream": "yes")", "stream", "true or false"},
      {R"("stream_options": {"include_usage": true})", "stream_options", "needs stream"},
      {R"("stream": true, "stream_options": 1)", "stream_options", "wanted an object"},
      {R"("stream": true, "stream_options": {"include_usage": 1})", "stream_options.include_usage",
       "true or false"},
      {R"("truncate_prompt_tokens": 0)", "truncate_prompt_tokens", "-1 (what fits)"},
      {R"("priority": -1)", "priority", "priority is -1"},
      {R"("cache_salt": 5)", "cache_salt", "wanted text"},
      {R"("model": ["m"])", "model", "wanted text"},
      {R"("tools": [{"type": "function"}])", "tools", "tools is not supported by this server"},
      {R"("tool_choice": "required")", "tool_choice", "not supported"},
      {R"("response_format": {"type": "json_object"})", "response_format",
       "it is {\"type\":\"json_object\"}"},
      {R"("guided_json": {})", "guided_json", "not supported"},
      {R"("best_of": 2)", "best_of", "not supported"},
      {R"("suffix": "end")", "suffix", "not supported"},
      {R"("prompt_logprobs": 1)", "prompt_logprobs", "not supported"},
  };
  for (const Refusal& c : cases) {
    ExpectRefused(ParseChatRequest(Chat(c.member)).status(), c);
    ExpectRefused(ParseCompletionRequest(Completion(c.member)).status(), c);
  }
}

TEST(OpenAiRequest, RefusesWhatIsWrongInChats) {
  const Refusal cases[] = {
      {R"({})", "messages", "messages is missing"},
      {R"({"messages": "hi"})", "messages", "messages is \"hi\""},
      {R"({"messages": []})", "messages", "at least one message"},
      {R"({"messages": [3]})", "messages[0]", "messages[0] is 3"},
      {R"({"messages": [{"content": "x"}]})", "messages[0].role", "is missing"},
      {R"({"messages": [{"role": "tool", "content": "x"}]})", "messages[0].role",
       "messages[0].role is \"tool\", wanted \"system\""},
      {R"({"messages": [{"role": "user"}]})", "messages[0].content", "is missing"},
      {R"({"messages": [{"role": "user", "content": 5}]})", "messages[0].content", "is 5"},
      {R"({"messages": [{"role": "user", "content": ["x"]}]})", "messages[0].content[0]", "\"x\""},
      {R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
       "messages[0].content[0].type", "reads text only"},
      {R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})",
       "messages[0].content[0].text", "wanted a text"},
      {R"({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]})",
       "messages[0].tool_calls", "not supported"},
  };
  for (const Refusal& c : cases) ExpectRefused(ParseChatRequest(c.member).status(), c);
  const Refusal members[] = {
      {R"("logprobs": 2)", "logprobs", "true or false"},
      {R"("top_logprobs": 2)", "top_logprobs", "needs logprobs to be true"},
      {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs", "from 0 to 20"},
      {R"("chat_template_kwargs": true)", "chat_template_kwargs", "wanted an object"},
      {R"("chat_template_kwargs": {"thinking": 1})", "chat_template_kwargs.thinking", "true or"},
      {R"("reasoning_effort": "high")", "reasoning_effort", "not supported"},
      {R"("continue_final_message": true)", "continue_final_message", "not supported"},
  };
  for (const Refusal& c : members) ExpectRefused(ParseChatRequest(Chat(c.member)).status(), c);
}

TEST(OpenAiRequest, RefusesWhatIsWrongInCompletions) {
  const Refusal cases[] = {
      {R"({})", "prompt", "prompt is missing"},
      {R"({"prompt": 5})", "prompt", "prompt is 5"},
      {R"({"prompt": []})", "prompt", "a list of 1 to 128"},
      {R"({"prompt": [1, -2]})", "prompt", "prompt[1] is -2, wanted a token id"},
      {R"({"prompt": [1, "a"]})", "prompt", "prompt[1] is \"a\""},
      {R"({"prompt": ["a", 1]})", "prompt[1]", "prompt[1] is 1"},
      {R"({"prompt": ["a", []]})", "prompt[1]", "not empty"},
      {R"({"prompt": [[1], [2.5]]})", "prompt[1]", "prompt[1][0] is 2.5"},
      {R"({"prompt": ["a", "b"], "n": 65})", "n", "n is 65 for 2 prompts"},
      {R"({"prompt": "a", "echo": true, "logprobs": 1})", "logprobs", "together with echo"},
      {R"({"prompt": "a", "logprobs": 21})", "logprobs", "from 0 to 20"},
      {R"({"prompt": "a", "min_tokens": 17})", "min_tokens", "at most max_tokens (16)"},
  };
  for (const Refusal& c : cases) ExpectRefused(ParseCompletionRequest(c.member).status(), c);
}

TEST(OpenAiRequest, RefusesWhatIsNoJsonObject) {
  for (const std::string& body :
       {std::string(""), std::string("{"), std::string("[]"), std::string("\xFF"),
        std::string(R"({"messages": "\ud800"})"), std::string(100000, '[')}) {
    const auto parsed = ParseChatRequest(body);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << body.substr(0, 20);
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("request body"));
  }
}

TEST(OpenAiRequest, ReadsTokenizeAndDetokenize) {
  const auto text = ParseTokenizeRequest(R"({"prompt": "a", "add_special_tokens": false})");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_FALSE(text->chat || text->add_special_tokens);
  EXPECT_EQ(text->prompt, "a");
  const auto chat = ParseTokenizeRequest(Chat(""));
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_TRUE(chat->chat);
  ExpectRefused(ParseTokenizeRequest("{}").status(), {"", "prompt", "messages instead"});
  const auto tokens = ParseDetokenizeRequest(R"({"tokens": [1, 2]})");
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_THAT(tokens->tokens, ElementsAre(1, 2));
  ExpectRefused(ParseDetokenizeRequest("{}").status(), {"", "tokens", "is missing"});
}

}  // namespace
}  // namespace sluice::router
