#include "services/base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

namespace sluice {

Progress::Progress(std::string label, int64_t total_bytes, ProgressOut out)
    : label_(std::move(label)),
      total_(std::max<int64_t>(total_bytes, 1)),
      out_(std::move(out)),
      terminal_(out_.file != nullptr && isatty(fileno(out_.file)) == 1) {}

Progress::~Progress() {
  const std::lock_guard<std::mutex> lock(mutex_);
  Show(done_, /*last=*/true);
}

void Progress::Add(int64_t bytes) {
  const int64_t done = done_.fetch_add(bytes) + bytes;
  if (out_.file == nullptr && out_.tell == nullptr) return;
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (lock.owns_lock()) Show(done, /*last=*/false);  // else another thread is printing
}

void Progress::Show(int64_t done, bool last) {
  const int64_t percent = done >= total_ ? 100 : done * 100 / total_;
  const Clock::time_point now = Clock::now();
  if (terminal_) {
    if (!last && now - shown_at_ < std::chrono::milliseconds(100)) return;
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(percent * kWidth / 100);
    const double seconds = std::chrono::duration<double>(now - start_).count();
    absl::FPrintF(out_.file, "\r%s [%s%s] %3d %%  %s of %s  %.1f s%s", label_,
                  std::string(filled, '#'), std::string(kWidth - filled, '.'), percent,
                  HumanBytes(done), HumanBytes(total_), seconds, last ? "\n" : "");
  } else {
    const bool finished = percent == 100 && shown_percent_ != 100;
    const bool due =
        percent / 10 > shown_percent_ / 10 && now - shown_at_ >= std::chrono::seconds(1);
    if (!finished && !due) return;
    if (out_.tell != nullptr) out_.tell(label_, percent, total_);
    if (out_.file != nullptr) {
      absl::FPrintF(out_.file, "%s: %d %% of %s\n", label_, percent, HumanBytes(total_));
    }
  }
  if (out_.file != nullptr) std::fflush(out_.file);
  shown_at_ = now;
  shown_percent_ = percent;
}

std::string HumanBytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 5) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrFormat("%d B", bytes)
                   : absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

}  // namespace sluice
