#include "services/transport/watched_mover.h"

#include <gtest/gtest.h>

#include "services/transport/memory_mover.h"

namespace sluice::transport {
namespace {

constexpr absl::Duration kLimit = absl::Seconds(10);

class DeviceWatchTest : public testing::Test {
 protected:
  // Asks every quarter of a second for so long.
  absl::Status Check(absl::Duration time) {
    absl::Status status = watch_.Check(kLimit, now_);
    for (absl::Duration step; step < time && status.ok(); step += absl::Milliseconds(250)) {
      now_ += absl::Milliseconds(250);
      status = watch_.Check(kLimit, now_);
    }
    return status;
  }

  absl::Time now_ = absl::UnixEpoch();
  DeviceWatch watch_;
};

TEST_F(DeviceWatchTest, TheOldestThatHasNotEndedCounts) {
  EXPECT_EQ(Check(absl::Minutes(1)), absl::OkStatus()) << "nothing is asked";
  const DeviceWatch::Mark first = watch_.Begin("one");
  EXPECT_EQ(Check(absl::Seconds(6)), absl::OkStatus());
  const DeviceWatch::Mark second = watch_.Begin("two");
  EXPECT_EQ(Check(absl::Milliseconds(3750)), absl::OkStatus());
  watch_.End(first);
  EXPECT_EQ(Check(absl::Seconds(6)), absl::OkStatus());
  const absl::Status late = Check(absl::Milliseconds(250));
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(late.message(),
            "the KV transport: two has not ended for 10s, the limit is 10s; see the system's log "
            "for errors of the GPU");
  watch_.End(second);
  EXPECT_EQ(Check(absl::Minutes(1)), absl::OkStatus());
}

TEST_F(DeviceWatchTest, AProcessThatWasStoppedAccusesNobody) {
  EXPECT_EQ(Check(absl::ZeroDuration()), absl::OkStatus());
  (void)watch_.Begin("one");
  for (int stops = 0; stops < 9; ++stops) {
    now_ += absl::Hours(1);
    EXPECT_EQ(Check(absl::ZeroDuration()), absl::OkStatus());
  }
  now_ += absl::Hours(1);
  EXPECT_EQ(Check(absl::ZeroDuration()).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(DeviceWatchTest, TheFirstFailureStays) {
  watch_.Failed(absl::InternalError("first"));
  watch_.Failed(absl::InternalError("second"));
  EXPECT_EQ(Check(absl::ZeroDuration()), absl::InternalError("first"));
  EXPECT_EQ(Check(absl::ZeroDuration()), absl::InternalError("first"));
}

TEST_F(DeviceWatchTest, BatchesAreWatchedUntilTheyAreDoneOrGone) {
  const auto faults = std::make_shared<MemoryMoverFaults>();
  WatchedMover mover(std::make_unique<MemoryMover>(faults), &watch_);
  std::byte bytes[8] = {};
  const PageCopy copies[] = {{.from = bytes, .bytes = sizeof(bytes)}};
  faults->Hold(true);
  auto done = mover.Queue(copies, {}), gone = mover.Queue(copies, {});
  ASSERT_TRUE(done.ok() && gone.ok());
  EXPECT_EQ(Check(absl::Seconds(11)).code(), absl::StatusCode::kDeadlineExceeded);
  faults->Hold(false);
  while (!*(*done)->Done()) {
  }
  gone->reset();
  EXPECT_EQ(Check(absl::Seconds(11)), absl::OkStatus());

  faults->Fail();
  EXPECT_FALSE(mover.Queue(copies, {}).ok());
  EXPECT_EQ(Check(absl::ZeroDuration()), absl::InternalError("the device failed"));
}

// A device that is lost while nobody copies is noticed when somebody wants to begin.
TEST_F(DeviceWatchTest, CallsThatTheDeviceFailsAreToldAndRefusalsAreNot) {
  const auto faults = std::make_shared<MemoryMoverFaults>();
  WatchedMover mover(std::make_unique<MemoryMover>(faults), &watch_);
  faults->RefuseMaps();
  EXPECT_FALSE(mover.Map({}).ok());
  EXPECT_TRUE(mover.AllocateStaging(8).ok());
  EXPECT_EQ(Check(absl::ZeroDuration()), absl::OkStatus());
  faults->Fail();
  EXPECT_FALSE(mover.Map({}).ok());
  EXPECT_EQ(Check(absl::ZeroDuration()), absl::InternalError("the device failed"));

  DeviceWatch other;
  WatchedMover staging(std::make_unique<MemoryMover>(faults), &other);
  EXPECT_FALSE(staging.AllocateStaging(8).ok());
  EXPECT_EQ(other.Check(kLimit, now_), absl::InternalError("the device failed"));
}

}  // namespace
}  // namespace sluice::transport
