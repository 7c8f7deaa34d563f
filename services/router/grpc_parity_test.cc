// What one API can, the other can too: the same request through gRPC and HTTP gets the same answer.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "google/protobuf/text_format.h"
#include "grpcpp/client_context.h"
#include "services/router/grpc_api_fixture.h"
#include "services/router/http_api.h"
#include "services/rpc/status.h"

namespace sluice::router {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr uint32_t kStopToken = 42;

// What an HTTP client is sent.
class CollectingReply final : public HttpReply {
 public:
  void Send(HttpResponse response) override {
    status = response.status;
    bytes = std::move(response.body);
    done.Notify();
  }
  void BeginStream(const HttpHeaders&) override {}
  void Write(absl::string_view more) override { bytes.append(more.data(), more.size()); }
  void EndStream(absl::string_view last) override {
    Write(last);
    done.Notify();
  }

  int status = 200;
  std::string bytes;
  absl::Notification done;
};

// The same for both APIs.
struct Answer {
  std::vector<std::string> pieces;  // all that clients are told, but nothing where it is nothing
  std::string usage;
  std::vector<std::vector<uint32_t>> prompts;  // as the backend was asked
  std::string sampling;
  bool operator==(const Answer&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Answer& answer) {
  return out << absl::StrJoin(answer.pieces, "\n") << "\nusage " << answer.usage;
}

struct Piece {
  uint32_t index = 0;
  std::string reasoning, content;
  std::vector<uint32_t> ids;
  std::string finish, stop, usage;
};

void Append(const Piece& piece, std::vector<std::string>* out) {
  if (piece.reasoning.empty() && piece.content.empty() && piece.ids.empty()) return;
  out->push_back(absl::StrCat(piece.index, " reasoning[", piece.reasoning, "] content[",
                              piece.content, "] ids[", absl::StrJoin(piece.ids, ","), "] ",
                              piece.finish, " stop[", piece.stop, "] usage[", piece.usage, "]"));
}

std::string Text(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return "";
  return found->is_string() ? found->get<std::string>() : found->dump();
}

std::string UsageText(const Json& usage) {
  return absl::StrCat(usage["prompt_tokens"].get<int>(), "+", usage["completion_tokens"].get<int>(),
                      ", reasoning ",
                      usage["completion_tokens_details"]["reasoning_tokens"].get<int>());
}
std::string UsageText(const v1::Usage& usage) {
  return absl::StrCat(usage.prompt_tokens(), "+", usage.completion_tokens(), ", reasoning ",
                      usage.reasoning_tokens());
}

// Server-sent events. The last of a stream tells the usage, and no choice.
void ParseEvents(absl::string_view events, Answer* answer) {
  for (absl::string_view event : absl::StrSplit(events, "\n\n", absl::SkipEmpty())) {
    ASSERT_TRUE(absl::ConsumePrefix(&event, "data: ")) << event;
    if (event == "[DONE]") return;
    const Json json = Json::parse(event);
    ASSERT_TRUE(json.contains("choices")) << event;
    if (json["choices"].empty()) {
      answer->usage = UsageText(json["usage"]);
      continue;
    }
    const Json& choice = json["choices"][0];
    const Json& text = choice.contains("delta") ? choice["delta"] : choice;
    Piece piece{.index = choice["index"],
                .reasoning = Text(text, "reasoning"),
                .content = Text(text, choice.contains("delta") ? "content" : "text"),
                .ids = choice.value("token_ids", std::vector<uint32_t>()),
                .finish = Text(choice, "finish_reason"),
                .stop = Text(choice, "matched_stop")};
    if (json.contains("usage") && piece.finish.empty()) piece.usage = UsageText(json["usage"]);
    Append(piece, &answer->pieces);
  }
}

void ParseChunk(const v1::GenerateChunk& chunk, Answer* answer) {
  Piece piece{.index = chunk.index(),
              .reasoning = chunk.reasoning_delta(),
              .content = chunk.text_delta(),
              .ids = {chunk.token_ids().begin(), chunk.token_ids().end()},
              .stop = chunk.matched_stop()};
  if (chunk.has_matched_stop_token()) piece.stop = absl::StrCat(chunk.matched_stop_token());
  if (chunk.finish_reason() == v1::FINISH_REASON_STOP) piece.finish = "stop";
  if (chunk.finish_reason() == v1::FINISH_REASON_LENGTH) piece.finish = "length";
  if (chunk.has_usage()) {
    answer->usage = UsageText(chunk.usage());  // the last one's stays
    if (piece.finish.empty()) piece.usage = answer->usage;
  }
  Append(piece, &answer->pieces);
}

// `text`: further fields in text format, over those of `message`.
template <typename Message>
Message With(Message message, const char* text) {
  Message more;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &more)) << text;
  message.MergeFrom(more);
  return message;
}

Json HttpBody(bool chat, const char* members) {
  Json body = Json::parse(R"({"stream": true, "stream_options": {"include_usage": true},
      "return_token_ids": true, "seed": 1, "max_tokens": 9})");
  body.update(chat ? Json::parse(R"({"messages": [{"role": "user", "content": "hi"}]})")
                   : Json::parse(R"({"prompt": "hi there"})"));
  body.update(Json::parse(members));
  return body;
}

v1::ChatRequest ChatMessageWith(const char* text) {
  return With(With(v1::ChatRequest(), R"pb(messages { role: "user" content: "hi" }
                                           options { seed: 1 max_tokens: 9 })pb"),
              text);
}
v1::GenerateRequest GenerateMessageWith(const char* text) {
  return With(With(v1::GenerateRequest(), R"pb(text: "hi there"
                                               options { seed: 1 max_tokens: 9 })pb"),
              text);
}

class GrpcParityTest : public GrpcApiTest {
 protected:
  // Gives each of `count` requests the same output.
  struct Output {
    std::vector<const char*> steps;
    v1::Finish finish = v1::FINISH_LENGTH;
    std::vector<uint32_t> last;  // tokens behind the last step's
  };

  void Serve(size_t count, const Output& output, Answer* answer) {
    WaitUntil([&] { return backend_.submitted.size() == count; });
    OnLoop([&] {
      for (const GenerationRequest& request : backend_.submitted) {
        answer->prompts.push_back(request.prompt->ids);
        absl::StrAppend(&answer->sampling, request.sampling.ShortDebugString(), "; ");
      }
      std::vector<RequestId> ids;
      for (const auto& [id, request] : backend_.running) ids.push_back(id);
      for (const RequestId id : ids) {
        for (size_t i = 0; i < output.steps.size() && backend_.running.contains(id); ++i) {
          const bool last = i + 1 == output.steps.size();
          std::vector<uint32_t> tokens = TestTokens(output.steps[i]);
          if (last) tokens.insert(tokens.end(), output.last.begin(), output.last.end());
          backend_.Give(id, tokens, last ? output.finish : v1::FINISH_UNSPECIFIED);
        }
      }
      backend_.submitted.clear();
    });
  }

  // On the loop, as a server does it. `serve` runs while the request does.
  template <typename F>
  void CallHttp(const char* path, const Json& body, CollectingReply* reply, F serve) {
    std::unique_ptr<HttpWork> work;
    OnLoop(
        [&] { work = http_.Handle({.method = "POST", .path = path, .body = body.dump()}, reply); });
    serve();
    reply->done.WaitForNotification();
    OnLoop([&] { work.reset(); });
  }
  template <typename F>
  void CallHttp(bool chat, const Json& body, CollectingReply* reply, F serve) {
    CallHttp(chat ? "/v1/chat/completions" : "/v1/completions", body, reply, serve);
  }

  template <typename F>
  grpc::Status CallGrpc(bool chat, const char* text, Answer* answer, F serve) {
    grpc::ClientContext context;
    const auto stub = v1::Generation::NewStub(channel_);
    auto reader = chat ? stub->Chat(&context, ChatMessageWith(text))
                       : stub->Generate(&context, GenerateMessageWith(text));
    serve();
    for (v1::GenerateChunk chunk; reader->Read(&chunk);) ParseChunk(chunk, answer);
    return reader->Finish();
  }

  HttpApi http_{{.keys = {}, .version = "v", .created = 7}, &edge_, &metrics_};
};

TEST_F(GrpcParityTest, AnswersAsHttpDoes) {
  Start();
  const Output thinks{.steps = {"hm", " ok</think>yes"}};
  const Output eos{.steps = {"hm</think>yes"}, .finish = v1::FINISH_STOP, .last = {kTestEos}};
  const Output stop_token{.steps = {"yes"}, .finish = v1::FINISH_STOP, .last = {kStopToken}};
  const Output stop_text{.steps = {"a b c"}, .finish = v1::FINISH_UNSPECIFIED};
  const Output plain{.steps = {"yes"}};
  const struct {
    const char* name;
    bool chat;
    const char* http;
    const char* grpc;
    size_t answers;
    Output output;
    const char* wanted;  // among the pieces: what the field is for
  } cases[] = {
      {"defaults", true, "{}", "", 1, thinks, "reasoning[ ok] content[yes]"},
      {"end token left out", true, "{}", "", 1, eos, "content[yes] "},
      {"stop string left out", false, R"({"stop": " b"})", R"(options { stop: " b" })", 1,
       stop_text, "content[a] "},
      {"include_stop", false, R"({"stop": " b", "include_stop_str_in_output": true})",
       R"(options { stop: " b" include_stop: true })", 1, stop_text, "content[a b] "},
      {"skip_special_tokens", false, R"({"skip_special_tokens": false,
                                         "include_stop_str_in_output": true})",
       "options { skip_special_tokens: false include_stop: true }", 1, eos, "end"},
      {"no special tokens by default", false, R"({"include_stop_str_in_output": true})",
       "options { include_stop: true }", 1, eos, "yes] "},
      {"stop token", false, R"({"stop_token_ids": [42]})", "options { stop_token_ids: 42 }", 1,
       stop_token, "stop stop[42]"},
      {"echo", false, R"({"echo": true})", "echo: true", 1, plain, "content[hi there] ids[] "},
      {"echo of each", false, R"({"prompt": ["one", "two"], "n": 2, "echo": true})",
       R"(prompts { prompts { text: "one" } prompts { text: "two" } } options { n: 2 } echo: true)",
       4, plain, "3 reasoning[] content[two] ids[]"},
      {"prompts of token ids", false, R"({"prompt": [[5, 6], [7]]})",
       "prompts { prompts { token_ids { ids: [ 5, 6 ] } } prompts { token_ids { ids: 7 } } }", 2,
       plain, "1 reasoning[] content[yes]"},
      {"no BOS", false, R"({"add_special_tokens": false})", "add_special_tokens: false", 1, plain,
       "yes"},
      {"BOS", false, R"({"add_special_tokens": true})", "add_special_tokens: true", 1, plain,
       "yes"},
      {"truncation", false, R"({"truncate_prompt_tokens": 2, "echo": true})",
       "options { truncate_prompt_tokens: 2 } echo: true", 1, plain, "content["},
      {"truncation to what fits", false, R"({"truncate_prompt_tokens": -1})",
       "options { truncate_prompt_tokens: -1 }", 1, plain, "yes"},
      {"the smaller truncation", true, R"({"truncate_prompt_tokens": 3})",
       "options { truncate_prompt: true truncate_prompt_tokens: 3 }", 1, plain, "yes"},
      {"include_reasoning", true, R"({"include_reasoning": false})", "include_reasoning: false", 1,
       thinks, "reasoning[] content[yes]"},
      {"separate_reasoning", true, R"({"separate_reasoning": false})", "separate_reasoning: false",
       1, thinks, "reasoning[] content[hm]"},
      {"stream_reasoning", true, R"({"stream_reasoning": false})", "stream_reasoning: false", 1,
       thinks, "reasoning[hm ok] content[yes]"},
      {"set to the default", true,
       R"({"include_reasoning": true, "separate_reasoning": true, "stream_reasoning": true,
           "skip_special_tokens": true})",
       "include_reasoning: true separate_reasoning: true stream_reasoning: true "
       "options { skip_special_tokens: true }",
       1, thinks, "reasoning[ ok] content[yes]"},
      {"continuous_usage", true,
       R"({"stream_options": {"include_usage": true, "continuous_usage_stats": true}})",
       "options { continuous_usage: true }", 1, thinks, ", reasoning "},
      {"developer", true,
       R"({"messages": [{"role": "user", "content": "hi"},
                        {"role": "developer", "content": "be brief"},
                        {"role": "user", "content": "x"}]})",
       R"(messages { role: "developer" content: "be brief" }
          messages { role: "user" content: "x" })",
       1, plain, "yes"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Answer http, grpc;
    CollectingReply reply;
    CallHttp(c.chat, HttpBody(c.chat, c.http), &reply, [&] { Serve(c.answers, c.output, &http); });
    ParseEvents(reply.bytes, &http);
    const grpc::Status status =
        CallGrpc(c.chat, c.grpc, &grpc, [&] { Serve(c.answers, c.output, &grpc); });
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(grpc, http);
    EXPECT_THAT(absl::StrJoin(grpc.pieces, "\n"), HasSubstr(c.wanted));
  }
}

// Else a default that both APIs have by mistake would look right above.
TEST_F(GrpcParityTest, FieldsOfThePromptChangeIt) {
  Start();
  const uint32_t bos = static_cast<uint32_t>(TestModel().tokenizer->bos_id());
  std::vector<uint32_t> without = TestTokens("hi there");
  std::vector<uint32_t> with = without;
  with.insert(with.begin(), bos);
  ASSERT_GT(without.size(), 1u);
  const struct {
    const char* grpc;
    std::vector<uint32_t> prompt;
  } cases[] = {
      {"", with},
      {"add_special_tokens: false", without},
      {"options { truncate_prompt_tokens: 2 }", {bos, without.back()}},
      {"add_special_tokens: false options { truncate_prompt_tokens: 1 }", {without.back()}},
  };
  for (const auto& c : cases) {
    Answer answer;
    ASSERT_TRUE(
        CallGrpc(false, c.grpc, &answer, [&] { Serve(1, {.steps = {"x"}}, &answer); }).ok());
    EXPECT_EQ(answer.prompts[0], c.prompt) << c.grpc;
  }
}

TEST_F(GrpcParityTest, RefusesAsHttpDoes) {
  Start();
  backend_.refusal = absl::InternalError("was not refused before");
  std::string many = "prompts { ";
  for (int i = 0; i < 129; ++i) many += R"(prompts { text: "a" } )";
  many += "}";
  const struct {
    bool chat;
    const char* http;  // null: it has other words, for other names
    const char* grpc;
    const char* field;
    const char* message;
  } cases[] = {
      {false, R"({"truncate_prompt_tokens": 0})", "options { truncate_prompt_tokens: 0 }",
       "options.truncate_prompt_tokens", "is 0, wanted -1 (what fits)"},
      {false, R"({"truncate_prompt_tokens": -2})", "options { truncate_prompt_tokens: -2 }",
       "options.truncate_prompt_tokens", "is -2, wanted a whole number from -1 to 4294967295"},
      {false, R"({"truncate_prompt_tokens": 4294967296})",
       "options { truncate_prompt_tokens: 4294967296 }", "options.truncate_prompt_tokens",
       "is 4294967296, wanted"},
      {false, R"({"echo": true, "logprobs": 0})", "echo: true options { logprobs: 0 }",
       "options.logprobs", "together with echo"},
      {false, R"({"prompt": ["a", "b"], "n": 65})",
       R"(prompts { prompts { text: "a" } prompts { text: "b" } } options { n: 65 })", "options.n",
       "is 65 for 2 prompts, wanted at most 128"},
      {true, R"({"messages": [{"role": "user", "content": "hi"}, {"role": "tool",
                                                                  "content": "x"}]})",
       R"(messages { role: "tool" content: "x" })", "messages[1].role",
       R"(is "tool", wanted "system", "developer")"},
      {false, nullptr, "prompts {}", "prompts", "0 entries long, wanted 1 to 128"},
      {false, nullptr, many.c_str(), "prompts", "129 entries long, wanted 1 to 128"},
      {false, nullptr, R"(prompts { prompts { text: "a" } prompts {} })", "prompts[1]",
       "is missing"},
      {false, nullptr, "prompts { prompts { token_ids { ids: 2147483648 } } }", "prompts[0]",
       "is 2147483648, wanted token ids"},
      {false, nullptr, "prompts { prompts { token_ids {} } }", "prompt", "prompt is empty"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(std::string(c.grpc).substr(0, 80));
    Answer answer;
    const grpc::Status status = CallGrpc(c.chat, c.grpc, &answer, [] {});
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(rpc::DetailsOf(status).field, c.field);
    EXPECT_THAT(status.error_message(), HasSubstr(c.message));
    if (c.http == nullptr) continue;
    CollectingReply reply;
    CallHttp(c.chat, HttpBody(c.chat, c.http), &reply, [] {});
    EXPECT_EQ(reply.status, 400);
    const Json error = Json::parse(reply.bytes)["error"];
    EXPECT_EQ(absl::StrReplaceAll(status.error_message(), {{"options.", ""}}), error["message"]);
    EXPECT_EQ(absl::StrReplaceAll(c.field, {{"options.", ""}}), error["param"]);
  }
}

TEST_F(GrpcParityTest, RefusesAChatOfNothing) {
  Start();
  backend_.refusal = absl::InternalError("was not refused before");
  const auto stub = v1::Generation::NewStub(channel_);
  grpc::ClientContext context;
  const grpc::Status status = stub->Chat(&context, v1::ChatRequest())->Finish();
  CollectingReply reply;
  CallHttp(true, HttpBody(true, R"({"messages": []})"), &reply, [] {});
  EXPECT_EQ(status.error_message(), Json::parse(reply.bytes)["error"]["message"]);
  EXPECT_EQ(rpc::DetailsOf(status).field, "messages");
}

TEST_F(GrpcParityTest, TokenizesAsHttpDoes) {
  Start();
  const auto stub = v1::Tokenizer::NewStub(channel_);
  const struct {
    const char* http;
    const char* grpc;
  } cases[] = {
      {R"({"prompt": "hi <think>"})", R"(text: "hi <think>")"},
      {R"({"prompt": "hi <think>", "add_special_tokens": false})",
       R"(text: "hi <think>" add_special_tokens: false)"},
      {R"({"prompt": "hi <think>", "add_special_tokens": true})",
       R"(text: "hi <think>" add_special_tokens: true)"},
      {R"({"messages": [{"role": "user", "content": "hi"}]})",
       R"(messages { role: "user" content: "hi" })"},
      {R"({"messages": [{"role": "developer", "content": "be brief"},
                        {"role": "user", "content": "hi"}],
           "chat_template_kwargs": {"thinking": true}, "prompt": "x"})",
       R"(messages { role: "developer" content: "be brief" } messages { role: "user" content: "hi" }
          thinking: true text: "x")"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.grpc);
    Json body = Json::parse(c.http);
    body["return_token_strs"] = true;
    CollectingReply reply;
    CallHttp("/tokenize", body, &reply, [] {});
    const Json http = Json::parse(reply.bytes);
    v1::TokenizeRequest request = With(v1::TokenizeRequest(), c.grpc);
    request.set_return_token_strs(true);
    v1::TokenizeResponse grpc;
    grpc::ClientContext context;
    ASSERT_TRUE(stub->Tokenize(&context, request, &grpc).ok());
    EXPECT_EQ(std::vector<uint32_t>(grpc.token_ids().begin(), grpc.token_ids().end()),
              http["tokens"]);
    EXPECT_EQ(std::vector<std::string>(grpc.token_strs().begin(), grpc.token_strs().end()),
              http["token_strs"]);
    EXPECT_EQ(grpc.max_model_len(), http["max_model_len"]);
  }
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  const grpc::Status status = stub->Tokenize(
      &context, With(v1::TokenizeRequest(), R"(messages { role: "tool" })"), &response);
  EXPECT_EQ(rpc::DetailsOf(status).field, "messages[0].role");
}

}  // namespace
}  // namespace sluice::router
