// Runs the same work on many indices from a few threads.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/status.h"

namespace sluice {

// Calls fn(index) once for each index in [0, count), from the calling thread and up to threads - 1
// others (0: one thread per core), in rising order of start; returns when all have ended. After an
// error no further index is started; the error with the lowest index is returned.
absl::Status ParallelFor(int64_t count, int threads,
                         const std::function<absl::Status(int64_t)>& fn);

}  // namespace sluice
