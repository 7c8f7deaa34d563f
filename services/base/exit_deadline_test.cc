#include "services/base/exit_deadline.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <future>

#include "services/base/log.h"

namespace sluice {
namespace {

TEST(ExitDeadlineDeathTest, EndsAProcessThatHangs) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ExitDeadline deadline;
        deadline.Start(absl::Milliseconds(10));
        deadline.Start(absl::Hours(1));  // too late to ask for more
        std::promise<void>().get_future().wait();
      },
      testing::ExitedWithCode(1), "something hangs");
}

TEST(ExitDeadlineDeathTest, TheEarlierOfTwoDeadlinesCounts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ExitDeadline deadline;
        deadline.Start(absl::Hours(1));  // a drain
        deadline.Start(absl::Milliseconds(10));
        std::promise<void>().get_future().wait();
      },
      testing::ExitedWithCode(1), "something hangs");
}

TEST(ExitDeadlineDeathTest, EndsAProcessWhoseLogNobodyReads) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        int ends[2];
        if (pipe2(ends, O_NONBLOCK) != 0) std::_Exit(2);
        while (write(ends[1], "x", 1) == 1) continue;  // it is full
        fcntl(ends[1], F_SETFL, 0);
        if (!StartLogging({.fd = ends[1]}).ok()) std::_Exit(3);
        LogInfo("this line is waited for");
        ExitDeadline deadline;
        deadline.Start(absl::Milliseconds(10));
        std::promise<void>().get_future().wait();
      },
      testing::ExitedWithCode(1), "");
}

TEST(ExitDeadlineTest, LeavesOneAloneThatComesToItsEnd) {
  { ExitDeadline never_started; }
  ExitDeadline deadline;
  deadline.Start(absl::Hours(1));  // and the destructor does not wait for it
}

}  // namespace
}  // namespace sluice
