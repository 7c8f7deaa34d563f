// Streams over real gRPC, on the loopback interface.
#include "services/instance/attach_client.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/v1/control.grpc.pb.h"

namespace sluice::instance {
namespace {

using ServerStream = grpc::ServerReaderWriter<v1::RouterMessage, v1::WorkerMessage>;

v1::RouterMessage Welcome() {
  v1::RouterMessage message;
  message.mutable_welcome()->set_router("router-1");
  return message;
}

v1::WorkerMessage Message(uint64_t request, size_t bytes = 0) {
  v1::WorkerMessage message;
  message.mutable_refused()->set_request(request);
  message.mutable_refused()->set_reason(std::string(bytes, 'x'));
  return message;
}

// What happened, in order, for the test's thread to wait for.
class Events {
 public:
  void Add(std::string event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    changed_.notify_all();
  }
  // Waits until so many there are of this event.
  void WaitFor(const std::string& event, int count = 1) {
    std::unique_lock lock(mutex_);
    const bool came = changed_.wait_for(lock, std::chrono::seconds(60),
                                        [&] { return CountLocked(event) >= count; });
    EXPECT_TRUE(came) << event << " did not come " << count << " times";
  }
  int Count(const std::string& event) {
    const std::lock_guard lock(mutex_);
    return CountLocked(event);
  }

 private:
  int CountLocked(const std::string& event) const {
    return static_cast<int>(std::count(events_.begin(), events_.end(), event));
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> events_;
};

// A router whose handling of a stream each test says, after the Hello.
class FakeRouter final : public v1::Attach::Service {
 public:
  using Handler = std::function<grpc::Status(ServerStream*)>;
  explicit FakeRouter(Handler handler) : handler_(std::move(handler)) { Start(0); }
  ~FakeRouter() override { Stop(); }

  void Start(int port) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  void Stop() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_ = nullptr;
  }
  int port() const { return port_; }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  Events events;

 private:
  grpc::Status Attach(grpc::ServerContext*, ServerStream* stream) override {
    v1::WorkerMessage hello;
    if (!stream->Read(&hello)) return grpc::Status::CANCELLED;
    events.Add(absl::StrCat("hello ", hello.hello().instance()));
    return handler_(stream);
  }

  const Handler handler_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class Listener final : public RouterListener {
 public:
  void OnAttached(RouterId router) override {
    last = router;
    events.Add("attached");
  }
  bool OnMessage(RouterId, v1::RouterMessage message) override {
    events.Add(absl::StrCat("cancel ", message.cancel().request()));
    return take;
  }
  void OnGone(RouterId router) override { events.Add(router == last ? "gone" : "another gone"); }

  std::atomic<RouterId> last{0};
  std::atomic<bool> take{true};
  Events events;
};

AttachOptions Options(const FakeRouter& router) {
  AttachOptions options{.routers = {router.address()},
                        .backoff_min = absl::Milliseconds(1),
                        .backoff_max = absl::Milliseconds(4)};
  options.hello.set_instance("decode-1");
  return options;
}

// Reads to the end; what comes is an event.
grpc::Status ReadAll(FakeRouter* router, ServerStream* stream) {
  v1::WorkerMessage message;
  while (stream->Read(&message)) {
    router->events.Add(absl::StrCat("message ", message.refused().request()));
  }
  router->events.Add("end");
  return grpc::Status::OK;
}

TEST(AttachClientTest, MessagesGoBothWaysAndOutBeforeTheEnd) {
  FakeRouter router([&](ServerStream* stream) {
    stream->Write(Welcome());
    v1::RouterMessage cancel;
    cancel.mutable_cancel()->set_request(7);
    stream->Write(cancel);
    return ReadAll(&router, stream);
  });
  Listener listener;
  AttachClient client(Options(router), &listener);
  router.events.WaitFor("hello decode-1");
  listener.events.WaitFor("cancel 7");
  EXPECT_EQ(client.num_attached(), 1);
  for (int i = 0; i < 100; ++i) client.Send(listener.last, Message(1));
  client.Send(listener.last + 1, Message(1));  // nobody
  client.SendToAll(Message(2));
  client.Close(absl::Seconds(60));
  EXPECT_EQ(router.events.Count("message 1"), 100);
  EXPECT_EQ(router.events.Count("message 2"), 1);
  EXPECT_EQ(router.events.Count("end"), 1);
  EXPECT_EQ(listener.events.Count("attached"), 1);
  EXPECT_EQ(listener.events.Count("gone"), 1);
}

// Each client here has the only channel of the process that lives on callbacks, and its end must
// not be left to a thread of gRPC's.
TEST(AttachClientTest, ClosingLeavesNothingToGrpcsThreads) {
  FakeRouter router([&](ServerStream* stream) {
    stream->Write(Welcome());
    return ReadAll(&router, stream);
  });
  for (int i = 0; i < 300; ++i) {
    Listener listener;
    AttachClient client(Options(router), &listener);
    listener.events.WaitFor("attached");
    client.Close(i % 2 == 0 ? absl::Seconds(60) : absl::ZeroDuration());
    EXPECT_EQ(listener.events.Count("gone"), 1);
  }
}

TEST(AttachClientTest, AStreamThatEndsIsDialledAnewAsAnotherOne) {
  FakeRouter router([](ServerStream* stream) {
    stream->Write(Welcome());
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away");
  });
  Listener listener;
  AttachClient client(Options(router), &listener);
  listener.events.WaitFor("attached", 5);
  listener.events.WaitFor("gone", 4);
  EXPECT_GE(listener.last, 5u);
  EXPECT_EQ(listener.events.Count("another gone"), 0);
}

TEST(AttachClientTest, ARouterThatComesLateIsFound) {
  FakeRouter router([&](ServerStream* stream) {
    stream->Write(Welcome());
    return ReadAll(&router, stream);
  });
  router.Stop();
  Listener listener;
  AttachClient client(Options(router), &listener);
  router.Start(router.port());
  listener.events.WaitFor("attached");
}

TEST(AttachClientTest, ARefusalIsNotAnAttachment) {
  FakeRouter router([](ServerStream*) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "another model");
  });
  Listener listener;
  AttachClient client(Options(router), &listener);
  router.events.WaitFor("hello decode-1", 3);
  EXPECT_EQ(listener.events.Count("attached"), 0);
  EXPECT_EQ(client.num_attached(), 0);
}

TEST(AttachClientTest, SomethingElseBeforeWelcomeBreaksTheStream) {
  FakeRouter router([&](ServerStream* stream) {
    v1::RouterMessage cancel;
    cancel.mutable_cancel()->set_request(7);
    stream->Write(cancel);
    return ReadAll(&router, stream);
  });
  Listener listener;
  AttachClient client(Options(router), &listener);
  router.events.WaitFor("end", 2);
  EXPECT_EQ(listener.events.Count("attached"), 0);
  EXPECT_EQ(listener.events.Count("cancel 7"), 0);
}

TEST(AttachClientTest, ARouterThatSaysNothingIsDialledAnew) {
  FakeRouter router([&](ServerStream* stream) { return ReadAll(&router, stream); });
  Listener listener;
  AttachOptions options = Options(router);
  options.welcome_timeout = absl::Milliseconds(20);
  AttachClient client(options, &listener);
  router.events.WaitFor("end", 2);
  EXPECT_EQ(listener.events.Count("attached"), 0);
}

struct OverflowCase {
  const char* name;
  size_t messages_max;
  size_t bytes_max;
};

TEST(AttachClientTest, ARouterThatDoesNotReadLosesItsStream) {
  for (const OverflowCase& test :
       {OverflowCase{"messages", 4, 64 << 20}, OverflowCase{"bytes", 4096, 1 << 20}}) {
    SCOPED_TRACE(test.name);
    Events release;
    FakeRouter router([&](ServerStream* stream) {
      stream->Write(Welcome());
      release.WaitFor("go");
      return grpc::Status::OK;
    });
    Listener listener;
    AttachOptions options = Options(router);
    options.queue_messages_max = test.messages_max;
    options.queue_bytes_max = test.bytes_max;
    AttachClient client(options, &listener);
    listener.events.WaitFor("attached");
    const RouterId first = listener.last;
    // More than the connection itself can hold.
    for (int i = 0; i < 1000 && listener.events.Count("gone") == 0; ++i) {
      client.Send(first, Message(1, 100'000));
    }
    listener.events.WaitFor("gone");
    release.Add("go");
  }
}

TEST(AttachClientTest, AListenerThatTakesNoMoreEndsTheStream) {
  FakeRouter router([&](ServerStream* stream) {
    stream->Write(Welcome());
    stream->Write(v1::RouterMessage());
    return ReadAll(&router, stream);
  });
  Listener listener;
  listener.take = false;
  AttachClient client(Options(router), &listener);
  router.events.WaitFor("end");
  listener.events.WaitFor("gone");
}

TEST(AttachClientTest, EachRouterHasItsStream) {
  const auto handler = [](FakeRouter* router, ServerStream* stream) {
    stream->Write(Welcome());
    return ReadAll(router, stream);
  };
  FakeRouter first([&](ServerStream* stream) { return handler(&first, stream); });
  FakeRouter second([&](ServerStream* stream) { return handler(&second, stream); });
  Listener listener;
  AttachOptions options = Options(first);
  options.routers.push_back(second.address());
  AttachClient client(options, &listener);
  listener.events.WaitFor("attached", 2);
  client.SendToAll(Message(3));
  first.events.WaitFor("message 3");
  second.events.WaitFor("message 3");
  first.Stop();
  client.SendToAll(Message(4));
  second.events.WaitFor("message 4");
}

}  // namespace
}  // namespace sluice::instance
