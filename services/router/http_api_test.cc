// The HTTP edge over real sockets; the test is the backend.

#include "services/router/http_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <latch>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <thread>

#include "services/base/log.h"
#include "services/router/fake_backend.h"
#include "services/router/http_server.h"
#include "services/router/http_test_client.h"
#include "services/router/retry_hint.h"
#include "services/router/test_model.h"

namespace sluice::router {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

constexpr char kChatPath[] = "/v1/chat/completions";
constexpr char kHi[] = R"({"messages": [{"role": "user", "content": "hi"}]})";
constexpr char kHiStream[] = R"({"messages": [{"role": "user", "content": "hi"}], "stream": true,
    "stream_options": {"include_usage": true}})";

class HttpApiTest : public ::testing::Test {
 protected:
  ~HttpApiTest() override {
    if (!thread_.joinable()) return;
    OnLoop([&] { server_.reset(); });
    pool_.reset();
    OnLoop([] {});
    loop_.stop();
    thread_.join();
  }

  void Start(HttpServerOptions options = {}, std::vector<ApiKey> keys = {}) {
    edge_.model = &TestModel();
    edge_.backend = &backend_;
    edge_.pool = &*pool_;
    edge_.metrics = &router_metrics_;
    edge_.post = [this](std::function<void()> f) { boost::asio::post(loop_, std::move(f)); };
    api_.emplace(HttpApiOptions{.keys = *ApiKeys::Create(keys), .version = "v", .created = 7},
                 &edge_, &metrics_);
    auto server = HttpServer::Start(&loop_, options, &*api_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    port_ = server_->port();
    thread_ = std::thread([this] { loop_.run(); });
  }

  template <typename F>
  void OnLoop(F f) {
    std::latch done{1};
    boost::asio::post(loop_, [&] {
      f();
      done.count_down();
    });
    done.wait();
  }
  // Gives the loop its turn until it holds; a test that waits in vain is ended by ctest.
  template <typename F>
  void WaitUntil(F holds) {
    bool held = false;
    while (!held) {
      OnLoop([&] { held = holds(); });
      std::this_thread::yield();
    }
  }
  void WaitForRequests(size_t count) {
    WaitUntil([&] { return backend_.submitted.size() == count; });
  }
  void Give(RequestId id, const std::string& text, v1::Finish finish = v1::FINISH_UNSPECIFIED) {
    OnLoop([&] {
      std::vector<uint32_t> ids = TestTokens(text);
      if (finish == v1::FINISH_STOP) ids.push_back(kTestEos);
      backend_.Give(id, ids, finish);
    });
  }

  FakeBackend backend_;
  RealClock clock_;
  Metrics metrics_{{.model = "tiny", .role = "router", .instance = "router-1"}};
  RouterMetrics router_metrics_{&metrics_, &clock_};
  std::optional<PreparationPool> pool_{std::in_place, PreparationPoolOptions{}};
  Edge edge_;
  std::optional<HttpApi> api_;
  boost::asio::io_context loop_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{
      loop_.get_executor()};
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
  int port_ = 0;
};

TEST_F(HttpApiTest, AnswersThePathsThatTakeNoBody) {
  Start();
  HttpTestClient client(port_);
  const struct {
    const char* request;
    int status;
    const char* body;
  } cases[] = {
      {"GET /health", 200, "ok"},
      {"GET /readyz", 200, "ok"},
      {"GET /ping", 200, "ok"},
      {"GET /livez", 200, "ok"},
      {"GET /health?x=1", 200, "ok"},
      {"GET /version", 200, R"({"version":"v"})"},
      {"GET /load", 200, R"({"server_load":0})"},
      {"GET /v1/models/tiny", 200, R"("max_model_len":2048)"},
      {"GET /v1/models/other", 404, "model_not_found"},
      {"GET /metrics", 200, "vllm:num_requests_running"},
      {"GET /nothing", 404, "nothing at /nothing"},
      {"DELETE /health", 405, "takes GET"},
      {"GET /v1/completions", 405, "takes POST"},
  };
  for (const auto& c : cases) {
    client.Send(absl::StrCat(c.request, " HTTP/1.1\r\n\r\n"));
    const auto response = client.Read();
    EXPECT_EQ(response.status, c.status) << c.request;
    EXPECT_THAT(response.body, HasSubstr(c.body)) << c.request;
    EXPECT_THAT(response.head, HasSubstr("X-Request-Id: ")) << c.request;
  }
  client.Get("/v1/models");
  EXPECT_EQ(Json::parse(client.Read().body), Json::parse(R"({"object": "list", "data": [
      {"id": "tiny", "object": "model", "created": 7, "owned_by": "sluice", "root": "sluice-tiny",
       "parent": null, "max_model_len": 2048, "permission": []}]})"));
}

TEST_F(HttpApiTest, HeadHasNoBody) {
  Start();
  HttpTestClient client(port_);
  client.Send("HEAD /health HTTP/1.1\r\n\r\nGET /livez HTTP/1.1\r\n\r\n");
  EXPECT_EQ(client.Read(/*is_head=*/true).status, 200);
  EXPECT_EQ(client.Read().body, R"({"status":"ok"})") << "the next one begins right behind";
}

TEST_F(HttpApiTest, IsUnhealthyWhenNothingCanBePlaced) {
  backend_.can_place = false;
  Start();
  HttpTestClient client(port_);
  for (const char* path : {"/health", "/v1/models", "/readyz"}) {
    client.Get(path);
    const auto response = client.Read();
    EXPECT_EQ(response.status, 503) << path;
    EXPECT_THAT(response.head, HasSubstr("Retry-After: 1")) << path;
  }
  client.Get("/livez");
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(HttpApiTest, AnswersAChatAtOnce) {
  Start();
  HttpTestClient client(port_);
  client.Post(kChatPath, R"({"messages": [{"role": "user", "content": "hi"}], "wibble": 1})",
              "X-Request-Id: mine\r\n");
  WaitForRequests(1);
  EXPECT_EQ(backend_.submitted[0].name, "mine");
  Give(1, "hm</think>yes");
  Give(1, "!", v1::FINISH_STOP);
  const auto response = client.Read();
  EXPECT_EQ(response.status, 200);
  EXPECT_THAT(response.head, HasSubstr("X-Request-Id: mine\r\n"));
  EXPECT_THAT(response.head, HasSubstr("X-Sluice-Ignored-Fields: wibble\r\n"));
  const Json json = Json::parse(response.body);
  EXPECT_THAT(json["id"].get<std::string>(), HasSubstr("chatcmpl-"));
  EXPECT_EQ(json["choices"][0]["message"]["content"], "yes!");
  EXPECT_EQ(json["choices"][0]["message"]["reasoning_content"], "hm");
  EXPECT_EQ(json["choices"][0]["finish_reason"], "stop");
}

TEST_F(HttpApiTest, StreamsAChat) {
  Start();
  HttpTestClient client(port_);
  client.Post(kChatPath, kHiStream);
  WaitForRequests(1);
  Give(1, "hm");
  std::string head = client.ReadUntil("\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream"));
  EXPECT_THAT(head, HasSubstr("Transfer-Encoding: chunked\r\n"));
  std::string events = client.ReadUntil("hm\"},");
  Give(1, "</think>yes");
  events += client.ReadUntil("yes");
  Give(1, "!", v1::FINISH_STOP);
  events += client.ReadUntil("\r\n0\r\n\r\n");
  events = std::regex_replace(events, std::regex("\r\n[0-9a-f]+\r\n|^[0-9a-f]+\r\n|\r\n"), "");
  events = std::regex_replace(events, std::regex("chatcmpl-[0-9a-f]+"), "ID");
  events = std::regex_replace(events, std::regex("\"created\":[0-9]+"), "\"created\":1");
  events = std::regex_replace(events, std::regex("fp_[0-9a-f]+"), "FP");
  const std::string chunk =
      R"(data: {"id":"ID","object":"chat.completion.chunk","created":1,"model":"tiny","system_fingerprint":"FP","choices":[)";
  const size_t prompt = backend_.submitted[0].prompt->ids.size();
  const size_t reasoning = TestTokens("hm").size() + 1;  // and </think>
  const size_t output = reasoning + TestTokens("yes").size() + TestTokens("!").size() + 1;
  EXPECT_EQ(
      events,
      chunk +
          R"({"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})" +
          "\n\n" + chunk +
          R"({"index":0,"delta":{"reasoning_content":"hm","reasoning":"hm"},"logprobs":null,"finish_reason":null}]})" +
          "\n\n" + chunk +
          R"({"index":0,"delta":{"content":"yes"},"logprobs":null,"finish_reason":null}]})" +
          "\n\n" + chunk +
          R"({"index":0,"delta":{"content":"!"},"logprobs":null,"finish_reason":"stop","stop_reason":null,"matched_stop":null}]})" +
          "\n\n" + chunk +
          absl::StrCat("],\"usage\":{\"prompt_tokens\":", prompt, ",\"completion_tokens\":", output,
                       ",\"total_tokens\":", prompt + output,
                       ",\"prompt_tokens_details\":{\"cached_tokens\":0},"
                       "\"completion_tokens_details\":{\"reasoning_tokens\":",
                       reasoning, "},\"prompt_cache_hit_tokens\":0,\"prompt_cache_miss_tokens\":",
                       prompt, "}}\n\ndata: [DONE]\n\n"));
  client.Get("/livez");
  EXPECT_EQ(client.Read().status, 200) << "the connection is kept";
}

TEST_F(HttpApiTest, ErrorsHaveAStatusUntilTheFirstToken) {
  Start();
  HttpTestClient client(port_);
  client.Post(kChatPath, kHiStream);
  WaitForRequests(1);
  OnLoop([&] {
    backend_.Fail(1, WithRetryAfter(absl::UnavailableError("no room"), absl::Seconds(3)));
  });
  const auto response = client.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_THAT(response.head, HasSubstr("Retry-After: 3\r\n"));
  EXPECT_THAT(response.body, HasSubstr("overloaded_error"));

  client.Post(kChatPath, kHiStream);
  WaitForRequests(2);
  Give(2, "hm");
  client.ReadUntil("hm\"}");
  OnLoop([&] { backend_.Fail(2, absl::UnavailableError("gone")); });
  const std::string rest = client.ReadUntil("0\r\n\r\n");
  EXPECT_THAT(
      rest,
      HasSubstr(
          R"(data: {"error":{"message":"gone","type":"overloaded_error","param":null,"code":null}})"));
  EXPECT_THAT(rest, HasSubstr("data: [DONE]"));
  EXPECT_THAT(rest, Not(HasSubstr("finish_reason\":\"stop")));
}

TEST_F(HttpApiTest, RefusesBadRequestsWithoutAskingTheBackend) {
  Start();
  HttpTestClient client(port_);
  const struct {
    const char* body;
    const char* headers;
    int status;
    const char* text;
  } cases[] = {
      {"{", "", 400, "request body"},
      {R"({"messages": 3})", "", 400, R"("param":"messages")"},
      {R"({"messages": [{"role": "user", "content": "x"}], "model": "other"})", "", 404,
       "model_not_found"},
      {R"({"messages": [{"role": "assistant", "content": "x"}]})", "", 400, "messages"},
      {R"({"messages": [{"role": "user", "content": "x"}], "request_id": "a\nb"})", "", 400,
       "request_id"},
  };
  for (const auto& c : cases) {
    client.Post(kChatPath, c.body, c.headers);
    const auto response = client.Read();
    EXPECT_EQ(response.status, c.status) << c.body;
    EXPECT_THAT(response.body, HasSubstr(c.text)) << c.body;
  }
  client.Send(
      "POST /v1/completions HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}");
  EXPECT_EQ(client.Read().status, 415);
  EXPECT_TRUE(backend_.submitted.empty());
}

TEST_F(HttpApiTest, ServesPipelinedRequestsInOrder) {
  Start();
  HttpTestClient client(port_);
  client.Post(kChatPath, kHi);
  client.Get("/livez");
  client.Post("/tokenize", R"({"prompt": "a"})");
  WaitForRequests(1);
  Give(1, "x</think>first", v1::FINISH_STOP);
  EXPECT_THAT(client.Read().body, HasSubstr("first"));
  EXPECT_EQ(client.Read().body, R"({"status":"ok"})");
  EXPECT_THAT(client.Read().body, HasSubstr(R"("count":2)"));
}

TEST_F(HttpApiTest, TokenizesAndBack) {
  Start();
  HttpTestClient client(port_);
  client.Post("/v1/tokenize", R"({"prompt": "hello there", "add_special_tokens": false,
                                  "return_token_strs": true})");
  const Json tokens = Json::parse(client.Read().body);
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(tokens["token_strs"].size(), tokens["tokens"].size());
  EXPECT_EQ(tokens["max_model_len"], 2048);
  client.Post("/detokenize", Json{{"tokens", tokens["tokens"]}}.dump());
  EXPECT_EQ(Json::parse(client.Read().body)["prompt"], "hello there");
  client.Post("/tokenize", kHi);
  EXPECT_GT(Json::parse(client.Read().body)["count"], 3);
}

TEST_F(HttpApiTest, CancelsWhenTheClientGoes) {
  Start();
  for (const char* body : {kHi, kHiStream}) {
    HttpTestClient client(port_);
    client.Post(kChatPath, body);
    WaitUntil([&] { return backend_.running.size() == 1; });
    client.Close();
    WaitUntil([&] { return backend_.running.empty(); });
  }
  EXPECT_EQ(backend_.num_cancelled, 2);
  WaitUntil([&] { return edge_.calls_running == 0 && server_->num_connections() == 0; });
}

// The same as instances log.
TEST_F(HttpApiTest, LogsTheIdThatTheRequestGivesItself) {
  Start();
  testing::internal::CaptureStderr();
  const LogLevel before = SetLogLevel(LogLevel::kDebug);
  HttpTestClient client(port_);
  client.Post("/v1/completions", R"({"prompt": "a", "request_id": "of-the-body"})",
              "X-Request-Id: of-the-header\r\n");
  WaitForRequests(1);
  EXPECT_EQ(backend_.submitted[0].name, "of-the-body");
  Give(1, "b", v1::FINISH_STOP);
  EXPECT_THAT(client.Read().head, HasSubstr("X-Request-Id: of-the-body\r\n"));
  SetLogLevel(before);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("call ended request_id=of-the-body api=completions"));
}

TEST_F(HttpApiTest, RefusesMoreAnswersThanItCouldEverHold) {
  edge_.answers_max = 3;
  Start();
  HttpTestClient client(port_);
  client.Post("/v1/completions", R"({"prompt": ["a", "b"], "n": 2})");
  const auto response = client.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_THAT(response.body, AllOf(HasSubstr("n is 2 for 2 prompts"), HasSubstr("at most 3"),
                                   HasSubstr(R"("param":"n")")));
  client.Post("/v1/completions", R"({"prompt": "a", "n": 3})");
  WaitForRequests(3);
}

TEST_F(HttpApiTest, BoundsTheBytesOfAllBodiesTogether) {
  Start({.limits = {.body_bytes_max = 300'000}, .receiving_bytes_max = 400'000});
  const std::string head =
      absl::StrCat("POST ", kChatPath, " HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n");
  HttpTestClient first(port_), second(port_), third(port_);
  for (HttpTestClient* client : {&first, &second}) client->Send(head + std::string(250'000, ' '));
  // One of the two is refused, the other goes on.
  HttpTestClient* refused = nullptr;
  while (refused == nullptr) {
    for (HttpTestClient* client : {&first, &second}) {
      if (client->HasInput()) refused = client;
    }
  }
  HttpTestClient* kept = refused == &first ? &second : &first;
  const auto response = refused->Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_THAT(response.head, HasSubstr("Retry-After: 1\r\n"));
  third.Post(kChatPath, kHi);  // there is room for small ones
  WaitForRequests(1);
  kept->Send(std::string(50'000, ' '));
  EXPECT_EQ(kept->Read().status, 400);  // blanks are no JSON
  // What was kept is free again.
  HttpTestClient fourth(port_);
  fourth.Send(head + std::string(300'000, ' '));
  EXPECT_EQ(fourth.Read().status, 400);
}

TEST_F(HttpApiTest, AnswersAClientThatSendsNoMore) {
  Start();
  const struct {
    const char* version;
    bool stream;
  } cases[] = {{"1.1", false}, {"1.1", true}, {"1.0", false}, {"1.0", true}};
  size_t requests = 0;
  for (const auto& c : cases) {
    SCOPED_TRACE(absl::StrCat("HTTP/", c.version, c.stream ? ", streamed" : ""));
    HttpTestClient client(port_);
    const std::string body = c.stream ? kHiStream : kHi;
    client.Send(absl::StrCat("POST ", kChatPath, " HTTP/", c.version,
                             "\r\nHost: x\r\nContent-Length: ", body.size(), "\r\n\r\n", body));
    WaitForRequests(++requests);
    if (c.stream) {
      Give(requests, "why ");
      client.ReadUntil("why");
    }
    client.EndSending();
    if (c.version == std::string("1.1")) {
      // What tells that the server has noticed: it asks whether somebody is still there.
      client.ReadUntil(c.stream ? "\r\n:\n\n" : "100 Continue\r\n\r\n");
    }
    EXPECT_EQ(backend_.num_cancelled, 0);
    Give(requests, "hello", v1::FINISH_STOP);
    EXPECT_THAT(client.ReadAll(), HasSubstr("hello"));
  }
}

TEST_F(HttpApiTest, AnswersAllThatWasSentBeforeTheEnd) {
  Start();
  HttpTestClient client(port_);
  client.Get("/version");
  client.Get("/livez");
  client.Send("GET /vers");  // never complete
  client.EndSending();
  EXPECT_THAT(client.ReadAll(), AllOf(HasSubstr(R"({"version":"v"})"), HasSubstr("ok")));
}

TEST_F(HttpApiTest, CancelsWhenAClientThatSendsNoMoreGoes) {
  Start();
  HttpTestClient client(port_);
  client.Post(kChatPath, kHi);
  WaitForRequests(1);
  client.EndSending();
  client.ReadUntil("100 Continue\r\n\r\n");
  client.Close();  // says nothing on the wire: the next probe finds out
  WaitUntil([&] { return backend_.num_cancelled == 1; });
}

TEST_F(HttpApiTest, CutsOffAClientThatDoesNotRead) {
  Start({.stream_bytes_max = 64 << 10});
  HttpTestClient client(port_, /*receive_buffer=*/4096);
  client.Post(kChatPath, kHiStream);
  WaitForRequests(1);
  const std::string text(2000, 'x');
  bool running = true;
  for (int i = 0; i < 100000 && running; ++i) {
    OnLoop([&] {
      running = !backend_.running.empty();
      if (running) backend_.Give(1, TestTokens(text));
    });
  }
  EXPECT_FALSE(running);
  EXPECT_EQ(backend_.num_cancelled, 1);
}

TEST_F(HttpApiTest, RefusesWhatIsTooLongAndCloses) {
  Start({.limits = {.header_bytes_max = 1000, .body_bytes_max = 1000}});
  const struct {
    std::string bytes;
    int status;
  } cases[] = {
      {"GET / HTTP/1.1\r\nA: " + std::string(2000, 'a') + "\r\n\r\n", 431},
      {"POST /tokenize HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n" + std::string(100000, 'a'),
       413},
      {"nonsense\r\n\r\n", 400},
  };
  for (const auto& c : cases) {
    HttpTestClient client(port_);
    client.Send(c.bytes);
    const auto response = client.Read();
    EXPECT_EQ(response.status, c.status);
    EXPECT_THAT(response.head, HasSubstr("Connection: close"));
    EXPECT_EQ(Json::parse(response.body)["error"]["type"], "invalid_request_error");
    EXPECT_EQ(client.ReadAll(), "");
  }
}

TEST_F(HttpApiTest, CutsOffSlowSendersAndIdleConnections) {
  Start({.idle_timeout = absl::Milliseconds(1), .header_timeout = absl::Milliseconds(1)});
  HttpTestClient idle(port_), slow(port_);
  slow.Send("GET / HT");
  EXPECT_EQ(idle.ReadAll(), "");
  EXPECT_EQ(slow.ReadAll(), "");
}

TEST_F(HttpApiTest, ContinuesWhenAsked) {
  Start();
  HttpTestClient client(port_);
  client.Send("POST /tokenize HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 15\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send(R"({"prompt": "a"})");
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(HttpApiTest, StreamsToHttp10UntilItCloses) {
  Start();
  HttpTestClient client(port_);
  client.Send(absl::StrCat("POST ", kChatPath, " HTTP/1.0\r\nContent-Length: ",
                           sizeof(kHiStream) - 1, "\r\n\r\n", kHiStream));
  WaitForRequests(1);
  Give(1, "x</think>y", v1::FINISH_STOP);
  const std::string all = client.ReadAll();
  EXPECT_THAT(all, Not(HasSubstr("chunked")));
  EXPECT_THAT(all, HasSubstr("\r\n\r\ndata: {"));
  EXPECT_TRUE(absl::EndsWith(all, "data: [DONE]\n\n"));
}

TEST_F(HttpApiTest, WantsAKeyForAllButHealth) {
  // printf %s secret | sha256sum
  Start({}, {{.name = "team",
              .sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"}});
  HttpTestClient client(port_);
  for (const char* path : {"/v1/models", "/metrics", "/version", "/nothing"}) {
    client.Get(path);
    const auto response = client.Read();
    EXPECT_EQ(response.status, 401) << path;
    EXPECT_THAT(response.head, HasSubstr("WWW-Authenticate: Bearer")) << path;
  }
  client.Get("/v1/models", "Authorization: Bearer wrong\r\n");
  EXPECT_EQ(client.Read().status, 401);
  client.Get("/health");
  EXPECT_EQ(client.Read().status, 200);
  client.Get("/v1/models", "Authorization: Bearer secret\r\n");
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(HttpApiTest, RefusesWhoHasNoKeyBeforeTheBody) {
  Start({}, {{.name = "team",
              .sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"}});
  const struct {
    const char* headers;
    int status;
  } cases[] = {
      {"Content-Length: 1000000\r\n", 401},
      {"Transfer-Encoding: chunked\r\n", 401},
      {"Expect: 100-continue\r\nContent-Length: 9\r\n", 401},
      {"Content-Length: 9\r\nAuthorization: Bearer wrong\r\n", 401},
      {"Content-Length: 9\r\nContent-Type: image/png\r\nAuthorization: Bearer secret\r\n", 415},
  };
  for (const auto& c : cases) {
    HttpTestClient client(port_);
    client.Send(absl::StrCat("POST ", kChatPath, " HTTP/1.1\r\n", c.headers, "\r\n"));
    const auto response = client.Read();
    EXPECT_EQ(response.status, c.status) << c.headers;
    EXPECT_THAT(response.head, HasSubstr("Connection: close")) << c.headers;
    client.Send("GET /health HTTP/1.1\r\n\r\n");
    EXPECT_EQ(client.ReadAll(), "") << "the body is not the next request";
  }
  // Who has one goes on, on the same connection.
  HttpTestClient client(port_);
  for (int i = 0; i < 2; ++i) {
    client.Send(
        "POST /tokenize HTTP/1.1\r\nAuthorization: Bearer secret\r\nExpect: 100-continue\r\n"
        "Content-Length: 15\r\n\r\n");
    EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    client.Send(R"({"prompt": "a"})");
    EXPECT_EQ(client.Read().status, 200);
  }
}

TEST_F(HttpApiTest, RefusesMoreConnectionsThanItMayHave) {
  Start({.connections_max = 1});
  HttpTestClient first(port_);
  first.Get("/livez");
  EXPECT_EQ(first.Read().status, 200);
  HttpTestClient second(port_);
  const auto response = second.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(Json::parse(response.body)["error"]["type"], "overloaded_error");
}

TEST_F(HttpApiTest, DrainsConnectionsAfterTheirAnswers) {
  Start();
  HttpTestClient idle(port_), busy(port_);
  idle.Get("/livez");
  idle.Read();
  busy.Post(kChatPath, kHi);
  WaitForRequests(1);
  OnLoop([&] { server_->BeginDrain(); });
  EXPECT_EQ(idle.ReadAll(), "");
  Give(1, "x</think>y", v1::FINISH_STOP);
  EXPECT_EQ(busy.Read().status, 200);
  EXPECT_EQ(busy.ReadAll(), "");
}

}  // namespace
}  // namespace sluice::router
