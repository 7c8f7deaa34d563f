// What travels with a page's bytes, and what comes back. Both twins pass these around; between
// processes they are sent as they lie in memory (little-endian, no padding).
#pragma once

#include <cstdint>
#include <type_traits>

#include "services/transport/page_checksum.h"

namespace sluice::transport {

struct PageHeader {
  uint64_t incarnation = 0;  // of the process that the lease comes from
  uint64_t lease = 0;
  uint64_t transfer = 0;  // the sender's, for the answer
  uint64_t checksum = 0;  // PageChecksum under the lease's key
  uint32_t layer = 0;
  uint32_t index = 0;  // of the page in the sequence

  PageTag tag() const { return {.lease = lease, .layer = layer, .page = index}; }
};
static_assert(sizeof(PageHeader) == 40 && std::has_unique_object_representations_v<PageHeader>);

// What became of a page at the receiver. The sender hears of all but kTaken.
enum class Answer : uint32_t {
  kTaken = 0,         // there and verified; more pages are missing
  kComplete = 1,      // there and verified, and with it the whole lease
  kUnknownLease = 2,  // or closed, or ended
  kDuplicate = 3,
  kOutside = 4,      // layer or page outside the lease
  kIncarnation = 5,  // meant for another life of this process
  kDamaged = 6,      // wrong checksum or length
  kBroken = 7,       // the bytes never came: the connection broke while they were fetched
};

}  // namespace sluice::transport
