#include "services/instance/step_times.h"

#include <gtest/gtest.h>

namespace sluice::instance {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

absl::Time At(int64_t ms) { return kStart + absl::Milliseconds(ms); }

TEST(StepTimesTest, AStepSubmittedWhileAnotherRunsBeginsWhenThatOneEnds) {
  StepTimes times;
  times.OnSubmit(At(0), 0);
  times.OnSubmit(At(10), 0);
  EXPECT_EQ(times.OnResult(At(100)).duration, absl::Milliseconds(100));
  EXPECT_TRUE(times.in_flight());
  EXPECT_EQ(times.OnResult(At(150)).duration, absl::Milliseconds(50));
  EXPECT_FALSE(times.in_flight());
  times.OnSubmit(At(1000), 0);
  EXPECT_EQ(times.OnResult(At(1020)).duration, absl::Milliseconds(20));
}

TEST(StepTimesTest, TheLongestIsForgottenAfterAMinute) {
  StepTimes times;
  EXPECT_EQ(times.longest(At(0)), absl::ZeroDuration());
  times.OnSubmit(At(0), 0);
  times.OnResult(At(500));
  for (int64_t ms = 1000; ms < 30'000; ms += 1000) {
    times.OnSubmit(At(ms), 0);
    times.OnResult(At(ms + 7));
    EXPECT_EQ(times.longest(At(ms + 7)), absl::Milliseconds(500));
  }
  times.OnSubmit(At(61'000), 0);
  times.OnResult(At(61'007));
  EXPECT_EQ(times.longest(At(61'007)), absl::Milliseconds(7));
  EXPECT_EQ(times.longest(At(200'000)), absl::ZeroDuration());  // idle since
}

TEST(StepTimesTest, TheRateIsThatOfStepsWithPrompts) {
  StepTimes times;
  times.OnSubmit(At(0), 100);
  times.OnResult(At(1000));
  EXPECT_DOUBLE_EQ(times.prompt_speed(), 100);
  times.OnSubmit(At(2000), 0);
  times.OnResult(At(2500));
  EXPECT_DOUBLE_EQ(times.prompt_speed(), 100);
  times.OnSubmit(At(3000), 200);
  times.OnResult(At(4000));
  EXPECT_DOUBLE_EQ(times.prompt_speed(), 120);
}

TEST(StepTimesTest, TheStepsDurationIsThatOfAllSteps) {
  StepTimes times;
  EXPECT_DOUBLE_EQ(times.step_seconds(), 0);
  times.OnSubmit(At(0), 100);
  times.OnResult(At(1000));
  EXPECT_DOUBLE_EQ(times.step_seconds(), 1);
  times.OnSubmit(At(1000), 0);
  times.OnResult(At(1500));
  EXPECT_DOUBLE_EQ(times.step_seconds(), 0.9);
}

}  // namespace
}  // namespace sluice::instance
