// Weights on their way to a device. Several threads each read pieces into pinned buffers of their
// own, from the files if that is where the bytes lie, and queue the copies to the device, which run
// while the next piece is read. No more of the model is ever in host memory than these buffers.
//
// Threads: one caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops/backend.h"
#include "services/base/mapped_file.h"
#include "services/base/progress.h"

namespace sluice::engine {

class WeightUpload {
 public:
  // Pinned memory is at most this, whatever the machine and the model: 8 MiB for each thread.
  static constexpr int kThreadsMax = 16;

  // `files`: bytes inside their mappings are read from the files themselves.
  WeightUpload(Backend* backend, std::vector<std::shared_ptr<const MappedFile>> files);

  // Copies `rows` rows of `row_bytes`, `stride_bytes` apart from `from` on, to device memory `to`,
  // one behind the other. Run does it; `from` must stay until then.
  void Add(const char* from, int64_t rows, size_t row_bytes, size_t stride_bytes, char* to);

  // Does all that was added, and waits for it, on `threads` threads (0: one per core). Errors:
  // those of the disk name the file; ResourceExhausted without pinned memory.
  absl::Status Run(int threads, const ProgressOut& progress);

 private:
  struct Part {
    const MappedFile* file;  // null: plain memory, read at `from`
    size_t begin;            // in the file, or 0
    const char* from;
    size_t row_bytes;     // of memory with gaps between rows; else all of it
    size_t stride_bytes;  // likewise
    size_t bytes;         // without gaps
    char* to;

    bool in_one() const { return bytes == row_bytes; }
  };
  // What is read at once: parts that lie close together in one file, or one part of memory or with
  // gaps.
  struct Piece {
    size_t first, count;  // of parts_
    size_t begin, bytes;  // what is read of the file
  };
  class Worker;

  // The file that the bytes lie in, or null.
  const MappedFile* FileOf(const char* data) const;
  void AddRow(const char* from, size_t bytes, char* to);
  std::vector<Piece> Pieces();

  Backend* const backend_;
  const std::vector<std::shared_ptr<const MappedFile>> files_;  // by address of their mappings
  std::vector<Part> parts_;
};

}  // namespace sluice::engine
