// For tests: the public gRPC API over a real channel; the test is the backend.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "services/router/fake_backend.h"
#include "services/router/grpc_api.h"
#include "services/router/test_model.h"
#include "services/rpc/server.h"
#include "sluice/v1/generation.grpc.pb.h"

namespace sluice::router {

// One thread that runs what is posted, in order.
class TestLoop {
 public:
  ~TestLoop() {
    Post(nullptr);
    thread_.join();
  }
  void Post(std::function<void()> f) {
    absl::MutexLock lock(&mutex_);
    posted_.push_back(std::move(f));
  }

 private:
  void Run() {
    while (true) {
      std::function<void()> f;
      {
        absl::MutexLock lock(&mutex_);
        const auto any = [this]()
                             ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !posted_.empty(); };
        mutex_.Await(absl::Condition(&any));
        f = std::move(posted_.front());
        posted_.pop_front();
      }
      if (f == nullptr) return;
      f();
    }
  }
  absl::Mutex mutex_;
  std::deque<std::function<void()>> posted_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_{[this] { Run(); }};
};

class GrpcApiTest : public ::testing::Test {
 protected:
  ~GrpcApiTest() override { server_->Shutdown(absl::ZeroDuration()); }

  void Start(std::vector<ApiKey> keys = {}) {
    edge_.model = &TestModel();
    edge_.backend = &backend_;
    edge_.pool = &pool_;
    edge_.metrics = &router_metrics_;
    edge_.post = [this](std::function<void()> f) { loop_.Post(std::move(f)); };
    keys_ = *ApiKeys::Create(keys);
    auto server = rpc::Server::Start(
        {.address = "127.0.0.1:0", .services = api_.services(), .role = "router"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                   grpc::InsecureChannelCredentials());
  }

  template <typename F>
  void OnLoop(F f) {
    absl::Notification done;
    loop_.Post([&] {
      f();
      done.Notify();
    });
    done.WaitForNotification();
  }
  template <typename F>
  void WaitUntil(F holds) {
    bool held = false;
    while (!held) {
      OnLoop([&] { held = holds(); });
      std::this_thread::yield();
    }
  }
  void Give(RequestId id, const std::string& text, v1::Finish finish = v1::FINISH_UNSPECIFIED) {
    OnLoop([&] {
      std::vector<uint32_t> ids = TestTokens(text);
      if (finish == v1::FINISH_STOP) ids.push_back(kTestEos);
      backend_.Give(id, ids, finish);
    });
  }
  static v1::ChatRequest Hi() {
    v1::ChatRequest request;
    v1::ChatMessage* message = request.add_messages();
    message->set_role("user");
    message->set_content("hi");
    return request;
  }

  FakeBackend backend_;
  RealClock clock_;
  Metrics metrics_{{.model = "tiny", .role = "router", .instance = "router-1"}};
  RouterMetrics router_metrics_{&metrics_, &clock_};
  Edge edge_;
  ApiKeys keys_;
  GrpcApi api_{&edge_, &keys_};
  TestLoop loop_;
  PreparationPool pool_{PreparationPoolOptions{}};
  std::unique_ptr<rpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace sluice::router
