#include "services/base/version.h"

#include "absl/strings/str_cat.h"

namespace sluice {

extern const char* const kBuildCommit __attribute__((weak));  // cmake/SluiceTargets.cmake

absl::string_view SoftwareVersion() { return "sluice " SLUICE_VERSION; }

std::string BuildVersion() {
  if (&kBuildCommit == nullptr) return std::string(SoftwareVersion());
  return absl::StrCat(SoftwareVersion(), " (commit ", kBuildCommit, ")");
}

}  // namespace sluice
