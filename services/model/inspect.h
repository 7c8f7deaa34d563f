// What a checkpoint directory holds and whether Sluice can serve it, for a person to read.
#pragma once

#include <string>

namespace sluice::model {

struct InspectOptions {
  // Also reads every weight and reports values that are not finite (NaN codes in FP8): as slow as
  // the disk. Without it only headers and scales are read.
  bool check_data = false;
  bool show_progress = false;
  int threads = 0;  // 0: one per core
};

struct Inspection {
  std::string text;  // several lines: what was found, then "can be served" or each reason
  bool servable = false;
};

// Never fails: whatever is wrong with the directory becomes a reason in the text.
Inspection InspectCheckpoint(const std::string& dir, const InspectOptions& options = {});

}  // namespace sluice::model
