#include "services/base/exit_deadline.h"

#include <gtest/gtest.h>

#include <future>

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

TEST(ExitDeadlineTest, LeavesOneAloneThatComesToItsEnd) {
  { ExitDeadline never_started; }
  ExitDeadline deadline;
  deadline.Start(absl::Hours(1));  // and the destructor does not wait for it
}

}  // namespace
}  // namespace sluice
