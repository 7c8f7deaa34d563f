#include "services/base/shutdown.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <future>

#include "services/base/clock.h"

namespace sluice {
namespace {

TEST(ShutdownSignalTest, EitherSignalAsksOnce) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ShutdownSignal shutdown;
    std::promise<void> called;  // set twice, it would throw
    shutdown.OnRequested([&] { called.set_value(); });
    EXPECT_FALSE(shutdown.requested());
    EXPECT_FALSE(shutdown.WaitFor(absl::ZeroDuration()));
    kill(getpid(), signal);
    shutdown.Wait();
    called.get_future().wait();
  }
}

TEST(ShutdownSignalTest, RequestCallsBackOnceAndLateCallbacksToo) {
  ShutdownSignal shutdown;
  int calls = 0;
  shutdown.OnRequested([&] { ++calls; });
  shutdown.Request();
  shutdown.Request();
  EXPECT_EQ(calls, 1);
  int late_calls = 0;
  shutdown.OnRequested([&] { ++late_calls; });
  EXPECT_EQ(late_calls, 1);
}

TEST(ShutdownSignalTest, AForgottenCallbackIsNotCalled) {
  ShutdownSignal shutdown;
  int calls = 0;
  shutdown.OnRequested([&] { ++calls; });
  shutdown.ForgetCallback();
  shutdown.Request();
  EXPECT_EQ(calls, 0);
}

TEST(ShutdownSignalTest, ForgettingWaitsForTheCallUnderWay) {
  ShutdownSignal shutdown;
  std::promise<void> entered, go_on;
  std::atomic<bool> returned{false};
  shutdown.OnRequested([&] {
    entered.set_value();
    go_on.get_future().wait();
    returned = true;
  });
  kill(getpid(), SIGTERM);
  entered.get_future().wait();
  std::promise<void> forgetting;
  std::future<bool> had_returned = std::async(std::launch::async, [&] {
    forgetting.set_value();
    shutdown.ForgetCallback();
    return returned.load();
  });
  forgetting.get_future().wait();
  // Long enough for one that does not wait; one that does makes no difference.
  EXPECT_EQ(had_returned.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  go_on.set_value();
  EXPECT_TRUE(had_returned.get());
}

// The orderly end may hang: a second Ctrl-C gets out.
TEST(ShutdownSignalTest, SecondSignalEndsTheProcessAtOnce) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    ShutdownSignal shutdown;
    const auto tell = [&] {
      if (write(ready[1], "x", 1) != 1) _exit(1);
    };
    tell();
    shutdown.Wait();
    tell();
    while (true) pause();
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  kill(child, SIGTERM);
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  kill(child, SIGINT);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << status;
  EXPECT_EQ(WEXITSTATUS(status), 128 + SIGINT);
  close(ready[0]);
  close(ready[1]);
}

TEST(ClockTest, RealNeverGoesBackAndManualStandsStill) {
  const RealClock real;
  const absl::Time first = real.Now();
  EXPECT_LT(absl::AbsDuration(first - absl::Now()), absl::Minutes(1));
  EXPECT_GE(real.Now(), first);
  ManualClock manual;
  const absl::Time start = manual.Now();
  EXPECT_EQ(manual.Now(), start);
  manual.Advance(absl::Milliseconds(250));
  EXPECT_EQ(manual.Now() - start, absl::Milliseconds(250));
}

}  // namespace
}  // namespace sluice
