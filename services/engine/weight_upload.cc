#include "services/engine/weight_upload.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/parallel.h"

namespace sluice::engine {
namespace {

// Long enough for a disk to be at its fastest with a few reads in flight, short enough that a
// thread's two buffers are small and work is spread evenly.
constexpr size_t kPieceBytes = 4 << 20;
constexpr size_t kGapBytesMax = 64 << 10;  // shorter gaps between parts are read too
constexpr int kBuffers = 2;                // of a thread: one is read while the other is copied

size_t OffsetIn(const MappedFile* file, const char* data) {
  return file == nullptr ? 0 : static_cast<size_t>(data - file->bytes().data());
}

}  // namespace

// One thread's buffers.
class WeightUpload::Worker {
 public:
  explicit Worker(WeightUpload& upload) : upload_(upload) {}

  absl::Status Start() {
    SLUICE_RETURN_IF_ERROR(upload_.backend_->BindThread());
    SLUICE_ASSIGN_OR_RETURN(
        memory_, upload_.backend_->AllocateHost(kBuffers * kPieceBytes, "buffers to load weights"));
    for (auto& event : events_) {
      SLUICE_ASSIGN_OR_RETURN(event, upload_.backend_->MakeEvent());
    }
    return absl::OkStatus();
  }

  absl::Status Copy(const Piece& piece) {
    StreamEvent* const event = events_[next_].get();
    char* const buffer = memory_.As<char>() + next_ * kPieceBytes;
    next_ = (next_ + 1) % kBuffers;
    SLUICE_RETURN_IF_ERROR(upload_.backend_->Wait(*event));
    const Part* const parts = upload_.parts_.data() + piece.first;
    if (parts[0].file != nullptr && parts[0].in_one()) {
      SLUICE_RETURN_IF_ERROR(parts[0].file->Read(piece.begin, piece.bytes, buffer));
    } else {
      SLUICE_RETURN_IF_ERROR(Gather(parts[0], buffer));
    }
    for (size_t i = 0; i < piece.count; ++i) {
      const size_t offset = parts[i].begin - piece.begin;
      SLUICE_RETURN_IF_ERROR(
          upload_.backend_->CopyToDevice(parts[i].to, buffer + offset, parts[i].bytes, StreamId{}));
    }
    return upload_.backend_->Mark(event, StreamId{});
  }

  // The buffers go when the device is done with them. Also after a Start that failed.
  absl::Status Finish() {
    for (const auto& event : events_) {
      if (event != nullptr) SLUICE_RETURN_IF_ERROR(upload_.backend_->Wait(*event));
    }
    return absl::OkStatus();
  }

 private:
  // A file is read, not its mapping: that would end the process where the file has become shorter.
  static absl::Status Gather(const Part& part, char* to) {
    for (size_t done = 0, row = 0; done < part.bytes; done += part.row_bytes, ++row) {
      const size_t at = row * part.stride_bytes;
      if (part.file != nullptr) {
        SLUICE_RETURN_IF_ERROR(part.file->Read(part.begin + at, part.row_bytes, to + done));
      } else {
        std::memcpy(to + done, part.from + at, part.row_bytes);
      }
    }
    return absl::OkStatus();
  }

  WeightUpload& upload_;
  DeviceBuffer memory_;
  std::unique_ptr<StreamEvent> events_[kBuffers];
  int next_ = 0;
};

WeightUpload::WeightUpload(Backend* backend, std::vector<std::shared_ptr<const MappedFile>> files)
    : backend_(backend), files_([&files] {
        std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) {
          return a->bytes().data() < b->bytes().data();
        });
        return std::move(files);
      }()) {}

const MappedFile* WeightUpload::FileOf(const char* data) const {
  const auto after =
      std::upper_bound(files_.begin(), files_.end(), data,
                       [](const char* at, const auto& file) { return at < file->bytes().data(); });
  if (after == files_.begin()) return nullptr;
  const MappedFile* const file = std::prev(after)->get();
  return data < file->bytes().data() + file->bytes().size() ? file : nullptr;
}

void WeightUpload::Add(const char* from, int64_t rows, size_t row_bytes, size_t stride_bytes,
                       char* to) {
  if (rows == 0 || row_bytes == 0) return;
  if (row_bytes == stride_bytes) {
    AddRow(from, static_cast<size_t>(rows) * row_bytes, to);
    return;
  }
  if (row_bytes > kPieceBytes) {
    for (int64_t row = 0; row < rows; ++row) {
      AddRow(from + row * stride_bytes, row_bytes, to + row * row_bytes);
    }
    return;
  }
  // Columns of a wider matrix are packed as they are read.
  const MappedFile* const file = FileOf(from);
  const int64_t rows_at_once = static_cast<int64_t>(kPieceBytes / row_bytes);
  for (int64_t row = 0; row < rows; row += rows_at_once) {
    const char* const first = from + row * stride_bytes;
    const auto count = static_cast<size_t>(std::min(rows_at_once, rows - row));
    parts_.push_back({.file = file,
                      .begin = OffsetIn(file, first),
                      .from = first,
                      .row_bytes = row_bytes,
                      .stride_bytes = stride_bytes,
                      .bytes = count * row_bytes,
                      .to = to + row * row_bytes});
  }
}

void WeightUpload::AddRow(const char* from, size_t bytes, char* to) {
  const MappedFile* const file = FileOf(from);
  for (size_t done = 0; done < bytes; done += kPieceBytes) {
    const size_t part = std::min(kPieceBytes, bytes - done);
    parts_.push_back({.file = file,
                      .begin = OffsetIn(file, from + done),
                      .from = from + done,
                      .row_bytes = part,
                      .stride_bytes = part,
                      .bytes = part,
                      .to = to + done});
  }
}

std::vector<WeightUpload::Piece> WeightUpload::Pieces() {
  std::sort(parts_.begin(), parts_.end(), [](const Part& a, const Part& b) {
    return std::tie(a.file, a.begin, a.from) < std::tie(b.file, b.begin, b.from);
  });
  std::vector<Piece> pieces;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    if (part.file != nullptr && part.in_one() && i > 0 && parts_[i - 1].file == part.file &&
        parts_[i - 1].in_one()) {
      Piece& last = pieces.back();
      const size_t end = part.begin + part.bytes;
      if (part.begin <= last.begin + last.bytes + kGapBytesMax && end <= last.begin + kPieceBytes) {
        last.bytes = std::max(last.bytes, end - last.begin);
        ++last.count;
        continue;
      }
    }
    pieces.push_back({.first = i, .count = 1, .begin = part.begin, .bytes = part.bytes});
  }
  return pieces;
}

absl::Status WeightUpload::Run(int threads, const ProgressOut& progress_out) {
  const std::vector<Piece> pieces = Pieces();
  if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  threads = std::clamp<int>(static_cast<int>(std::min<size_t>(pieces.size(), kThreadsMax)), 1,
                            std::min(threads, kThreadsMax));
  int64_t total = 0;
  for (const Part& part : parts_) total += static_cast<int64_t>(part.bytes);
  Progress progress("loading weights", total, progress_out);
  std::atomic<size_t> next{0};
  const auto work = [&](Worker& worker) -> absl::Status {
    SLUICE_RETURN_IF_ERROR(worker.Start());
    while (true) {
      const size_t i = next.fetch_add(1);
      if (i >= pieces.size()) return absl::OkStatus();
      SLUICE_RETURN_IF_ERROR(worker.Copy(pieces[i]));
      int64_t bytes = 0;
      for (size_t p = 0; p < pieces[i].count; ++p) {
        bytes += static_cast<int64_t>(parts_[pieces[i].first + p].bytes);
      }
      progress.Add(bytes);
    }
  };
  return ParallelFor(threads, threads, [&](int64_t) {
    Worker worker(*this);
    absl::Status status = work(worker);
    if (!status.ok()) next = pieces.size();  // the others need not go on
    status.Update(worker.Finish());
    return status;
  });
}

}  // namespace sluice::engine
