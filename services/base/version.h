// What this program is, for people: handshakes, /version, logs.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace sluice {

absl::string_view SoftwareVersion();  // "sluice 0.1.0"

// With the commit that it was built from: "sluice 0.1.0 (commit 0123456789ab)", "-dirty" behind it
// when there were changes that were not committed, "unknown" without a repository. Tests have no
// commit.
std::string BuildVersion();

}  // namespace sluice
