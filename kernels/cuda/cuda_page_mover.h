// PageMover on a GPU: one kernel a batch copies and sums all its pages, on a stream of the mover's.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/stream_points.h"
#include "kernels/ops/page_mover.h"

namespace sluice {

// `points` are those of the backend's steps, and outlive the mover.
absl::StatusOr<std::unique_ptr<PageMover>> MakeCudaPageMover(int device,
                                                             const StreamPoints* points);

}  // namespace sluice
