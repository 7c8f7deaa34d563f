// A whole router with an instance that the test plays.
#include "services/router/router_app.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "services/base/cluster_config.h"
#include "services/model/page_hash.h"
#include "services/router/http_test_client.h"
#include "sluice/v1/control.grpc.pb.h"
#include "sluice/v1/generation.grpc.pb.h"

namespace sluice::router {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kModel[] = "deploy/models/sluice-tiny";
constexpr uint32_t kTokens = 1000;

absl::StatusOr<ClusterConfig> MakeConfig(const std::string& dir, const std::string& more = "") {
  return ParseClusterConfig(
      absl::StrCat("model: {dir: ", dir, more, "}\nmixed: {count: 1}\nbalancer: {enabled: false}\n",
                   "router: {http: 127.0.0.1:0, grpc: 127.0.0.1:0, attach: 127.0.0.1:0, ",
                   "admin: 127.0.0.1:0}\n"),
      "cluster.yaml");
}

class RouterAppTest : public testing::Test {
 protected:
  RouterAppTest() {
    const std::string dir = std::filesystem::absolute(kModel).string();
    const auto config = MakeConfig(dir);
    EXPECT_TRUE(config.ok()) << config.status();
    auto app = RouterApp::Start(*config, *FindProcess(*config, "router-1"), &clock_, [] {});
    EXPECT_TRUE(app.ok()) << app.status();
    app_ = *std::move(app);
    Attach(*model::ModelHash(dir));
  }
  ~RouterAppTest() override {
    ended_.Notify();
    heart_.join();
  }

  static void SetDeadline(grpc::ClientContext* context) {
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  }
  // Takes 64 KiB of a stream that nobody reads, and no more.
  static std::shared_ptr<grpc::Channel> Channel(int port) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                     grpc::InsecureChannelCredentials(), arguments);
  }

  void Attach(const model::PageHash& hash) {
    SetDeadline(&worker_context_);
    worker_stub_ = v1::Attach::NewStub(Channel(app_->ports().attach));
    worker_ = worker_stub_->Attach(&worker_context_);
    v1::WorkerMessage message;
    v1::Hello& hello = *message.mutable_hello();
    hello.set_protocol_version(v1::PROTOCOL_VERSION_CURRENT);
    hello.set_instance("mixed-1");
    hello.set_role(v1::ROLE_MIXED);
    hello.set_model_hash(std::string(hash.begin(), hash.end()));
    hello.mutable_capacity()->set_slots(4);
    hello.mutable_capacity()->set_kv_pages(64);
    hello.mutable_capacity()->set_positions(2048);
    hello.mutable_capacity()->set_step_tokens(256);
    ASSERT_TRUE(Send(message));
    ASSERT_TRUE(worker_->Read(&from_router_));  // Welcome
    heart_ = std::thread([this] { Beat(); });
  }
  bool Send(const v1::WorkerMessage& message) {
    const std::lock_guard lock(mutex_);
    return worker_->Write(message);
  }
  void Beat() {
    v1::WorkerMessage message;
    message.mutable_heartbeat()->set_ready(true);
    message.mutable_heartbeat()->mutable_load()->set_kv_pages_free(64);
    do {
      message.mutable_heartbeat()->set_progress(message.heartbeat().progress() + 1);
      if (!Send(message)) return;  // the router has ended
    } while (!ended_.WaitForNotificationWithTimeout(absl::Milliseconds(100)));
  }
  void SendToken(const v1::Admit& admit) {
    v1::WorkerMessage message;
    v1::RequestTokens& tokens = *message.mutable_step_tokens()->add_requests();
    tokens.set_request(admit.request());
    tokens.set_attempt(admit.attempt());
    tokens.add_token_ids(100);
    ASSERT_TRUE(Send(message));
  }
  void WaitUntilReady() {
    const auto stub = v1::Models::NewStub(Channel(app_->ports().grpc));
    v1::ListModelsResponse models;
    while (models.models().empty() || !models.models(0).ready()) {
      grpc::ClientContext context;
      SetDeadline(&context);
      ASSERT_TRUE(stub->ListModels(&context, {}, &models).ok());
    }
  }

  const RealClock clock_;
  std::unique_ptr<RouterApp> app_;
  grpc::ClientContext worker_context_;
  std::unique_ptr<v1::Attach::Stub> worker_stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::RouterMessage>> worker_;
  v1::RouterMessage from_router_;
  std::mutex mutex_;  // of writes to worker_
  absl::Notification ended_;
  std::thread heart_;
};

// More than a connection holds is on its way to the client when the last request is done.
TEST_F(RouterAppTest, ADrainWaitsForGrpcClientsThatStillRead) {
  WaitUntilReady();
  const auto stub = v1::Generation::NewStub(Channel(app_->ports().grpc));
  v1::GenerateRequest request;
  request.set_text("The");
  request.mutable_options()->set_max_tokens(kTokens);
  request.mutable_options()->set_logprobs(20);
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = stub->Generate(&context, request);
  ASSERT_TRUE(worker_->Read(&from_router_));
  ASSERT_TRUE(from_router_.has_admit()) << from_router_.ShortDebugString();

  v1::WorkerMessage message;
  v1::RequestTokens& tokens = *message.mutable_step_tokens()->add_requests();
  tokens.set_request(from_router_.admit().request());
  tokens.set_attempt(from_router_.admit().attempt());
  for (uint32_t i = 0; i < kTokens; ++i) {
    tokens.add_token_ids(100 + i % 100);
    v1::TokenLogprobs& logprobs = *tokens.add_logprobs();
    for (uint32_t top = 0; top < 20; ++top) {
      logprobs.add_top_ids(top);
      logprobs.add_top_logprobs(-1);
    }
  }
  tokens.set_finish(v1::FINISH_LENGTH);
  ASSERT_TRUE(Send(message));

  const auto drained = std::async(std::launch::async, [this] { app_->Drain(absl::Seconds(30)); });
  // It has nothing left to do but to wait for the client.
  EXPECT_EQ(drained.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  uint32_t count = 0;
  for (v1::GenerateChunk chunk; reader->Read(&chunk);) {
    count += static_cast<uint32_t>(chunk.token_ids_size());
  }
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(count, kTokens);
}

// Here, and not with the HTTP server's tests: the sanitizers' own look at memory takes descriptors.
TEST_F(RouterAppTest, SaysWhenItIsOutOfDescriptors) {
  WaitUntilReady();
  testing::internal::CaptureStderr();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int lowest_free = dup(0);
  close(lowest_free);
  // Room for the client's end, and none for the server's.
  const rlimit low{.rlim_cur = static_cast<rlim_t>(lowest_free) + 1, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  HttpTestClient client(app_->ports().http);
  client.Get("/livez");
  struct stat log {};
  while (fstat(STDERR_FILENO, &log) == 0 && log.st_size == 0) absl::SleepFor(absl::Milliseconds(1));
  absl::SleepFor(absl::Milliseconds(150));  // it tries again meanwhile
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(client.Read().status, 200);
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_THAT(lines,
              AllOf(HasSubstr("warn  out of file descriptors (nofile)"), HasSubstr("ulimit -n"),
                    HasSubstr(absl::StrCat("nofile=", low.rlim_cur)), HasSubstr("connections=0")));
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 1) << "it is said once";
}

// Before its first token a request has a status, afterwards an event. Over gRPC both have one.
TEST_F(RouterAppTest, ADrainThatRunsOutTellsClientsThatTheRouterEnds) {
  WaitUntilReady();
  const int port = app_->ports().http;
  HttpTestClient whole(port), silent(port), stream(port);
  constexpr char kAsk[] = R"({"prompt":"The","max_tokens":100)";
  whole.Post("/v1/completions", absl::StrCat(kAsk, "}"));
  silent.Post("/v1/completions", absl::StrCat(kAsk, R"(,"stream":true})"));
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(worker_->Read(&from_router_));
  stream.Post("/v1/completions", absl::StrCat(kAsk, R"(,"stream":true})"));
  ASSERT_TRUE(worker_->Read(&from_router_));
  SendToken(from_router_.admit());
  EXPECT_THAT(stream.ReadUntil("\n\n"), HasSubstr("200 OK"));

  const auto stub = v1::Generation::NewStub(Channel(app_->ports().grpc));
  v1::GenerateRequest request;
  request.set_text("The");
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = stub->Generate(&context, request);
  ASSERT_TRUE(worker_->Read(&from_router_));
  SendToken(from_router_.admit());
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));

  const auto drained =
      std::async(std::launch::async, [this] { app_->Drain(absl::ZeroDuration()); });
  for (HttpTestClient* const client : {&whole, &silent}) {
    const HttpTestClient::Response response = client->Read();
    EXPECT_EQ(response.status, 503) << response.head;
    EXPECT_THAT(response.head, AllOf(HasSubstr("Retry-After: 1"), HasSubstr("Connection: close")));
    EXPECT_THAT(response.body, AllOf(HasSubstr("overloaded_error"), HasSubstr("router ends")));
  }
  const std::string events = stream.ReadAll();
  EXPECT_THAT(events, HasSubstr(R"(data: {"error":{"message":"this router ends)"));
  EXPECT_THAT(events, testing::EndsWith("data: [DONE]\n\n\r\n0\r\n\r\n"));
  while (reader->Read(&chunk)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("this router ends"));
}

// It is served, without chats, and everybody who should know is told.
TEST(RouterAppStartTest, AnUnknownChatTemplateOnlySwitchesChatsOff) {
  const std::filesystem::path dir = testing::TempDir() + "/unknown_chat_template";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  for (const auto& file : std::filesystem::directory_iterator(kModel)) {
    std::filesystem::create_symlink(std::filesystem::absolute(file.path()),
                                    dir / file.path().filename());
  }
  std::ofstream(dir / "chat_template.jinja") << "{{ messages[0].content }}";
  const auto config = MakeConfig(dir.string());
  ASSERT_TRUE(config.ok()) << config.status();
  const RealClock clock;
  testing::internal::CaptureStderr();
  const auto app = RouterApp::Start(*config, *FindProcess(*config, "router-1"), &clock, [] {});
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("chats are refused"), HasSubstr("chat template is unknown")));
  ASSERT_TRUE(app.ok()) << app.status();
  const auto channel = grpc::CreateChannel(absl::StrCat("127.0.0.1:", (*app)->ports().grpc),
                                           grpc::InsecureChannelCredentials());
  {
    v1::ChatRequest request;
    v1::ChatMessage& message = *request.add_messages();
    message.set_role("user");
    message.set_content("Hi!");
    grpc::ClientContext context;
    const auto reader = v1::Generation::NewStub(channel)->Chat(&context, request);
    v1::GenerateChunk chunk;
    EXPECT_FALSE(reader->Read(&chunk));
    const grpc::Status status = reader->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(),
                AllOf(HasSubstr("chat template is unknown; there are deepseek-v2, deepseek-v3"),
                      HasSubstr("`chat_template: NAME`"), HasSubstr("Completions work")));
  }
  {
    v1::TokenizeRequest request;
    request.set_text("Hi!");
    v1::TokenizeResponse response;
    grpc::ClientContext context;
    const grpc::Status status =
        v1::Tokenizer::NewStub(channel)->Tokenize(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_GT(response.token_ids_size(), 0);
  }
  (*app)->Drain(absl::Seconds(1));
}

TEST(RouterAppStartTest, AChatTemplateThatIsNamedMustBeThere) {
  const std::string dir = std::filesystem::absolute(kModel).string();
  const auto config = MakeConfig(dir, ", chat_template: deepseek-v9");
  ASSERT_TRUE(config.ok()) << config.status();
  const RealClock clock;
  const auto app = RouterApp::Start(*config, *FindProcess(*config, "router-1"), &clock, [] {});
  EXPECT_THAT(std::string(app.status().message()), HasSubstr("\"deepseek-v9\" is none of"));
}

}  // namespace
}  // namespace sluice::router
