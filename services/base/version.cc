#include "services/base/version.h"

namespace sluice {

absl::string_view SoftwareVersion() { return "sluice " SLUICE_VERSION; }

}  // namespace sluice
