// What device code that waits for other device code looks at and says. Plain, for host and device.
#pragma once

#include <stdint.h>

namespace sluice::cuda {

// In pinned memory of the host. Whoever waits on the device stops its kernel, and with it the
// process's use of the GPU, when `stop` is not 0 or `limit_ms` have passed.
struct WaitState {
  uint32_t stop;      // the host's
  uint32_t limit_ms;  // the host's
  uint32_t gave_up;   // the device's: a GaveUp
};
enum GaveUp : uint32_t { kHasNot, kWasStopped, kTookTooLong };

// A kernel takes milliseconds, and what is waited for within one has started already.
constexpr uint32_t kWaitLimitMs = 20'000;

}  // namespace sluice::cuda
