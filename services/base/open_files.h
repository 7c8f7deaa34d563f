// How many files and sockets this process may have open.
#pragma once

#include <cstdint>

namespace sluice {

// Raises the soft limit to the hard one: every connection is a file, and shells commonly allow
// 1,024. Returns the limit from then on. Not for programs that use select().
int64_t RaiseOpenFilesLimit();

// The soft limit as it is; 0 when it cannot be had.
int64_t OpenFilesLimit();

}  // namespace sluice
