// Streams over real gRPC, on the loopback interface.
#include "services/router/attach_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "sluice/v1/control.grpc.pb.h"

namespace sluice::router {
namespace {

using ::testing::HasSubstr;

// The core's thread.
class Loop {
 public:
  Loop() : thread_([this] { Run(); }) {}
  ~Loop() {
    Post({});
    thread_.join();
  }
  void Post(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
    changed_.notify_one();
  }
  // Runs it on the loop and waits for it.
  void Call(const std::function<void()>& work) {
    std::promise<void> done;
    Post([&] {
      work();
      done.set_value();
    });
    done.get_future().wait();
  }

 private:
  void Run() {
    while (true) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return !queue_.empty(); });
      const std::function<void()> work = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      if (!work) return;
      work();
    }
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  std::thread thread_;
};

class NullSink final : public GenerationSink {
 public:
  void OnOutput(const Output&) override {}
  void OnError(const absl::Status&) override {}
};

v1::WorkerMessage Hello() {
  v1::WorkerMessage message;
  v1::Hello& hello = *message.mutable_hello();
  hello.set_protocol_version(v1::PROTOCOL_VERSION_CURRENT);
  hello.set_instance("mixed-1");
  hello.set_role(v1::ROLE_MIXED);
  hello.set_model_hash("0123456789abcdef");
  hello.mutable_capacity()->set_slots(4);
  hello.mutable_capacity()->set_kv_pages(32);
  hello.mutable_capacity()->set_positions(1024);
  hello.mutable_capacity()->set_step_tokens(256);
  return message;
}

v1::WorkerMessage Ready() {
  v1::WorkerMessage message;
  message.mutable_heartbeat()->set_ready(true);
  message.mutable_heartbeat()->mutable_load()->set_kv_pages_free(32);
  return message;
}

class AttachServiceTest : public testing::Test {
 protected:
  AttachServiceTest()
      : service([this](std::function<void()> work) { loop->Post(std::move(work)); }, &clock),
        core({.router = "router-1", .model_hash = "0123456789abcdef"}, &service, nullptr) {
    service.SetCore(&core);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service.service());
    server = builder.BuildAndStart();
    stub = v1::Attach::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  }
  ~AttachServiceTest() override {
    server->Shutdown(std::chrono::system_clock::now());
    loop.reset();
  }

  struct Worker {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::RouterMessage>> stream;
    v1::RouterMessage Read() {
      v1::RouterMessage message;
      EXPECT_TRUE(stream->Read(&message));
      return message;
    }
    grpc::Status Status() {
      v1::RouterMessage message;
      while (stream->Read(&message)) continue;
      return stream->Finish();
    }
  };
  std::unique_ptr<Worker> Dial(const v1::WorkerMessage& first) {
    auto worker = std::make_unique<Worker>();
    worker->context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    worker->stream = stub->Attach(&worker->context);
    worker->stream->Write(first);
    return worker;
  }
  // Waits until the core has heard of it: every look lets the loop do what came before.
  template <typename Condition>
  void WaitFor(Condition condition) {
    for (bool met = false; !met; std::this_thread::yield()) loop->Call([&] { met = condition(); });
  }

  RealClock clock;
  std::unique_ptr<Loop> loop = std::make_unique<Loop>();
  AttachService service;
  RouterCore core;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<v1::Attach::Stub> stub;
};

TEST_F(AttachServiceTest, CarriesMessagesBothWaysAndReportsTheEnd) {
  auto worker = Dial(Hello());
  EXPECT_EQ(worker->Read().welcome().router(), "router-1");
  worker->stream->Write(Ready());
  WaitFor([&] { return core.CanPlace(); });

  NullSink sink;
  loop->Call([&] {
    GenerationRequest request;
    auto prompt = std::make_shared<Prompt>();
    prompt->ids = {1, 2, 3};
    request.prompt = prompt;
    request.sampling.set_max_tokens(2);
    EXPECT_TRUE(core.Submit(request, &sink, clock.Now()).ok());
  });
  EXPECT_EQ(worker->Read().admit().prompt_ids_size(), 3);

  worker->stream->WritesDone();
  EXPECT_TRUE(worker->Status().ok());
  WaitFor([&] { return core.Snapshot().instances.empty(); });
}

TEST_F(AttachServiceTest, RefusalsEndTheStreamWithTheReason) {
  v1::WorkerMessage other_model = Hello();
  other_model.mutable_hello()->set_model_hash("x");
  const grpc::Status model = Dial(other_model)->Status();
  EXPECT_EQ(model.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(model.error_message(), HasSubstr("model_hash"));
  const grpc::Status no_hello = Dial(Ready())->Status();
  EXPECT_EQ(no_hello.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  loop->Call([&] { EXPECT_TRUE(core.Snapshot().instances.empty()); });
}

TEST_F(AttachServiceTest, MoreMessagesThanMayBeAheadAllArriveInOrder) {
  auto worker = Dial(Hello());
  worker->Read();
  const int count = 20 * AttachService::kMessagesAheadMax;
  for (int i = 1; i <= count; ++i) {
    v1::WorkerMessage message = Ready();
    message.mutable_heartbeat()->mutable_load()->set_kv_pages_cached(static_cast<uint64_t>(i));
    ASSERT_TRUE(worker->stream->Write(message));
  }
  uint64_t last = 0;
  WaitFor([&] {
    const uint64_t seen = core.Snapshot().instances[0].load.kv_pages_cached();
    EXPECT_GE(seen, last);
    last = seen;
    return seen == static_cast<uint64_t>(count);
  });
}

TEST_F(AttachServiceTest, AWorkerThatDoesNotReadLosesItsStream) {
  auto worker = Dial(Hello());
  worker->Read();
  WorkerId id = 0;
  WaitFor([&] {
    const RouterSnapshot snapshot = core.Snapshot();
    if (!snapshot.instances.empty()) id = snapshot.instances[0].worker;
    return id != 0;
  });
  v1::RouterMessage large;
  large.mutable_admit()->set_page_hashes(std::string(1 << 20, 'x'));
  loop->Call([&] {
    for (int i = 0; i < 100; ++i)
      service.Send(id, large);  // more than the queue and the connection hold
  });
  WaitFor([&] { return core.Snapshot().instances.empty(); });
  EXPECT_FALSE(worker->Status().ok());
}

TEST_F(AttachServiceTest, AProcessThatAttachesAnewEndsItsOldStream) {
  auto first = Dial(Hello());
  first->Read();
  auto second = Dial(Hello());
  second->Read();
  const grpc::Status told = first->Status();
  EXPECT_EQ(told.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_THAT(told.error_message(), HasSubstr("mixed-1"));
  second->stream->Write(Ready());
  WaitFor([&] { return core.CanPlace(); });
  loop->Call([&] { EXPECT_EQ(core.Snapshot().instances.size(), 1); });
}

TEST_F(AttachServiceTest, CloseEndsStreamsAndRefusesNewOnes) {
  auto worker = Dial(Hello());
  worker->Read();
  loop->Call([&] { service.Close(); });
  EXPECT_EQ(worker->Status().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Dial(Hello())->Status().error_code(), grpc::StatusCode::UNAVAILABLE);
  WaitFor([&] { return core.Snapshot().instances.empty(); });
}

TEST_F(AttachServiceTest, AConnectionThatBreaksIsReported) {
  auto worker = Dial(Hello());
  worker->Read();
  worker->context.TryCancel();
  WaitFor([&] { return core.Snapshot().instances.empty(); });
}

}  // namespace
}  // namespace sluice::router
