// The server, its health and reflection, the admin verbs through their client, and the statuses.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpc/support/log.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "services/base/log.h"
#include "services/base/tls_test_files.h"
#include "services/rpc/admin_client.h"
#include "services/rpc/channel.h"
#include "services/rpc/server.h"
#include "services/rpc/status.h"
#include "sluice/v1/balancer.grpc.pb.h"

namespace sluice::rpc {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(20);

// Does not answer until the call is cancelled.
class Reactor final : public grpc::ServerUnaryReactor {
 public:
  void OnCancel() override { Finish(grpc::Status::CANCELLED); }
  void OnDone() override { delete this; }
};

class BalancerService final : public v1::Balancer::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetExpertLoad(grpc::CallbackServerContext*,
                                          const v1::GetExpertLoadRequest*,
                                          v1::GetExpertLoadResponse*) override {
    started = true;
    return new Reactor;
  }
  std::atomic<bool> started{false};
};

class ServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = Server::Start({
        .address = "127.0.0.1:0",
        .services = {{std::string(v1::Balancer::service_full_name()), &service_}},
        .admin = AdminHandlers{.drain = [this] { ++drains_; },
                               .status =
                                   [] {
                                     v1::GetStatusResponse status;
                                     status.set_ready(true);
                                     status.add_instances()->set_instance("decode-1");
                                     return status;
                                   }},
        .role = "balancer",
    });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    address_ = absl::StrCat("127.0.0.1:", server_->port());
    channel_ = MakeChannel(address_);
  }

  // "SERVING", or the name of the error.
  std::string Health(const std::string& service) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kTimeout));
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status =
        grpc::health::v1::Health::NewStub(channel_)->Check(&context, request, &response);
    if (!status.ok()) return absl::StatusCodeToString(FromGrpc(status).code());
    return grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status());
  }

  BalancerService service_;
  std::atomic<int> drains_{0};
  std::unique_ptr<Server> server_;
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(ServerTest, HealthTellsLivenessAndReadinessApart) {
  const char* const kReadiness[] = {"", "readiness", "sluice.v1.Balancer", "sluice.v1.Admin"};
  EXPECT_EQ(Health("liveness"), "SERVING");
  for (const char* name : kReadiness) EXPECT_EQ(Health(name), "NOT_SERVING") << name;
  EXPECT_EQ(Health("sluice.v1.Router"), "NOT_FOUND");
  server_->SetReady(true);
  for (const char* name : kReadiness) EXPECT_EQ(Health(name), "SERVING") << name;
  server_->SetReady(false);
  for (const char* name : kReadiness) EXPECT_EQ(Health(name), "NOT_SERVING") << name;
  EXPECT_EQ(Health("liveness"), "SERVING");
  server_->SetLive(false);
  EXPECT_EQ(Health("liveness"), "NOT_SERVING");
}

TEST(LimitsTest, LongMessagesAreRefusedAndShortOnesTakenWithinTheMemory) {
  const auto server = Server::Start(
      {.address = "127.0.0.1:0", .message_bytes_max = 100, .memory_bytes_max = uint64_t{8} << 20});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto channel = MakeChannel(absl::StrCat("127.0.0.1:", (*server)->port()));
  for (const auto& [bytes, wanted] : {std::pair{90, grpc::StatusCode::NOT_FOUND},
                                      std::pair{101, grpc::StatusCode::RESOURCE_EXHAUSTED}}) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kTimeout));
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(std::string(static_cast<size_t>(bytes), 'x'));
    grpc::health::v1::HealthCheckResponse response;
    EXPECT_EQ(grpc::health::v1::Health::NewStub(channel)
                  ->Check(&context, request, &response)
                  .error_code(),
              wanted)
        << bytes;
  }
}

// What "liveness" answers to a client that trusts this CA and shows this certificate, or why not.
std::string LiveOverTls(int port, const std::string& ca, const TlsSection& shows = {}) {
  grpc::SslCredentialsOptions options{.pem_root_certs = ReadText(ca)};
  if (shows.enabled()) {
    options.pem_cert_chain = ReadText(shows.certificate);
    options.pem_private_key = ReadText(shows.key);
  }
  const auto channel =
      grpc::CreateChannel(absl::StrCat("localhost:", port), grpc::SslCredentials(options));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kTimeout));
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("liveness");
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status =
      grpc::health::v1::Health::NewStub(channel)->Check(&context, request, &response);
  if (!status.ok()) return absl::StatusCodeToString(FromGrpc(status).code());
  return grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status());
}

TEST(TlsServerTest, ServesWithFilesThatMayBeReplaced) {
  const TlsTestFiles files(1), next(2);
  const auto server = Server::Start({.address = "127.0.0.1:0", .tls = files.section()});
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  EXPECT_EQ(LiveOverTls(port, files.section().certificate), "SERVING");
  EXPECT_EQ(LiveOverTls(port, next.section().certificate), "UNAVAILABLE");  // not who they trust
  ReplaceFile(next.section().certificate, files.section().certificate);
  ReplaceFile(next.section().key, files.section().key);
  // Soon; a server that never takes them is ended by ctest.
  while (LiveOverTls(port, next.section().certificate) != "SERVING") {
    absl::SleepFor(absl::Milliseconds(100));
  }
}

TEST(TlsServerTest, WantsACertificateOfTheClientWhenThereIsAClientCa) {
  const TlsTestFiles files(1), friendly(7), stranger(8);
  TlsSection section = files.section();
  section.client_ca = friendly.section().certificate;
  const auto server = Server::Start({.address = "127.0.0.1:0", .tls = section});
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  EXPECT_EQ(LiveOverTls(port, section.certificate), "UNAVAILABLE");
  EXPECT_EQ(LiveOverTls(port, section.certificate, stranger.section()), "UNAVAILABLE");
  EXPECT_EQ(LiveOverTls(port, section.certificate, friendly.section()), "SERVING");
}

// One message each way on the reflection stream, as bytes: no header describes it.
std::string Reflect(const std::shared_ptr<grpc::Channel>& channel, const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  void* tag = nullptr;
  bool ok = false;
  auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto step = [&](auto&& start) {
    start();
    return queue.Next(&tag, &ok) && ok;
  };
  const grpc::Slice slice(request);
  const grpc::ByteBuffer sent(&slice, 1);
  grpc::ByteBuffer received;
  EXPECT_TRUE(step([&] { call->StartCall(nullptr); }));
  EXPECT_TRUE(step([&] { call->WriteLast(sent, {}, nullptr); }));
  EXPECT_TRUE(step([&] { call->Read(&received, nullptr); }));
  grpc::Status status;
  EXPECT_TRUE(step([&] { call->Finish(&status, nullptr); }));
  EXPECT_TRUE(status.ok()) << status.error_message();
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(received.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& part : slices) {
    bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  return bytes;
}

TEST_F(ServerTest, ReflectionListsAndDescribesEveryService) {
  const std::string list = Reflect(channel_, "\x3a\x01*");  // list_services = "*"
  for (const char* name : {"sluice.v1.Balancer", "sluice.v1.Admin", "grpc.health.v1.Health"}) {
    EXPECT_THAT(list, HasSubstr(name));
    const std::string symbol = name;  // file_containing_symbol
    EXPECT_THAT(
        Reflect(channel_,
                absl::StrCat("\x22", std::string(1, static_cast<char>(symbol.size())), symbol)),
        HasSubstr(".proto"))
        << name;
  }
}

TEST_F(ServerTest, AdminVerbsReachTheirHandlers) {
  const AdminClient client(address_);
  const auto status = client.GetStatus(kTimeout);
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->service(), "balancer");
  EXPECT_THAT(status->software(), HasSubstr("sluice "));
  EXPECT_TRUE(status->ready());
  EXPECT_EQ(status->instances(0).instance(), "decode-1");

  EXPECT_TRUE(client.Drain(kTimeout).ok());
  EXPECT_EQ(drains_, 1);

  SetLogLevel(LogLevel::kInfo);
  EXPECT_EQ(*client.SetLogLevel("debug", kTimeout), "info");
  EXPECT_TRUE(LogEnabled(LogLevel::kDebug));
  const auto wrong = client.SetLogLevel("loud", kTimeout);
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(wrong.status().message()), HasSubstr(address_));
  EXPECT_TRUE(LogEnabled(LogLevel::kDebug));
  SetLogLevel(LogLevel::kInfo);
}

TEST_F(ServerTest, WhatGrpcCallsAnErrorIsOneAndSaysWhere) {
  testing::internal::CaptureStderr();
  gpr_log("src/core/queue.cc", 42, GPR_LOG_SEVERITY_ERROR, "assertion failed: %s", "prior > 0");
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_THAT(line, HasSubstr("assertion failed: prior > 0"));
  EXPECT_THAT(line, HasSubstr("src/core/queue.cc:42"));
  EXPECT_THAT(line, HasSubstr("error"));
}

TEST_F(ServerTest, ATakenPortIsAnError) {
  const auto second = Server::Start({.address = address_});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(address_));
  EXPECT_EQ(Server::Start({.address = "nowhere.invalid:0"}).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(ServerTest, ShutdownEndsCallsThatHang) {
  std::thread caller([&] {
    grpc::ClientContext context;
    v1::GetExpertLoadResponse response;
    const grpc::Status status =
        v1::Balancer::NewStub(channel_)->GetExpertLoad(&context, {}, &response);
    EXPECT_FALSE(status.ok());
  });
  while (!service_.started) std::this_thread::yield();
  server_->Shutdown(absl::ZeroDuration());
  caller.join();
  server_->Shutdown(absl::Seconds(1));  // once more is fine
  server_->SetReady(true);
}

// A server on a busy host: half a second until it says that it speaks HTTP/2.
TEST(ChannelTest, WaitsForASlowServer) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener, 16), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  std::thread server([listener] {
    const int connection = accept(listener, nullptr, nullptr);
    absl::SleepFor(absl::Milliseconds(500));
    constexpr char kSettings[] = {0, 0, 0, 4, 0, 0, 0, 0, 0};  // a frame without any
    send(connection, kSettings, sizeof(kSettings), MSG_NOSIGNAL);
    char ignored[256];
    while (recv(connection, ignored, sizeof(ignored), 0) > 0) {
    }
    close(connection);
  });
  auto channel = MakeChannel(absl::StrCat("127.0.0.1:", ntohs(address.sin_port)));
  EXPECT_TRUE(
      channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(5)));
  channel.reset();
  shutdown(listener, SHUT_RDWR);
  server.join();
  close(listener);
}

TEST(AdminClientTest, NamesWhoDoesNotAnswer) {
  const auto status = AdminClient("127.0.0.1:1").GetStatus(absl::Seconds(2));
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.status().message()), HasSubstr("127.0.0.1:1: "));
}

TEST(StatusTest, EveryCodeGoesThereAndBack) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "why");
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
    EXPECT_TRUE(ToGrpc(status).error_details().empty());
  }
}

TEST(StatusTest, DetailsGoThereAndBack) {
  const ErrorDetails cases[] = {
      {.retry_after = absl::Milliseconds(1250)},
      {.reason = "CONTEXT_LENGTH_EXCEEDED"},
      {.field = "messages[0].role"},
      {.retry_after = absl::ZeroDuration(), .reason = "OVERLOADED", .field = "prompt"},
  };
  for (const ErrorDetails& details : cases) {
    EXPECT_EQ(DetailsOf(ToGrpc(absl::ResourceExhaustedError("full"), details)), details);
  }
  EXPECT_EQ(DetailsOf(grpc::Status(grpc::StatusCode::INTERNAL, "x", "\xff not a message")),
            ErrorDetails());
}

TEST(StatusTest, MessagesAreCutAndMended) {
  const struct {
    std::string text, wanted;
  } cases[] = {
      {"plain \xc3\xa9 \xf0\x9f\x98\x80", "plain \xc3\xa9 \xf0\x9f\x98\x80"},
      {"\xff", "?"},
      {"cut \xc3", "cut ?"},
      {"\xe2\x28\xa1", "?(?"},
      {std::string(5000, 'x'), std::string(2048, 'x')},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(ToGrpc(absl::InternalError(c.text)).error_message(), c.wanted);
    EXPECT_EQ(ToGrpc(absl::InternalError(c.text), {.reason = "R"}).error_message(), c.wanted);
  }
}

}  // namespace
}  // namespace sluice::rpc
