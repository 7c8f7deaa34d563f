// What this program is, for people: handshakes, /version, logs.
#pragma once

#include "absl/strings/string_view.h"

namespace sluice {

absl::string_view SoftwareVersion();  // "sluice 0.1.0"

}  // namespace sluice
