// The sums that the checksum of a page of KV is made of: a keyed sum over the page's words.
//
// Definition. The bytes are little-endian 32-bit words w_0, w_1, …, zero-padded to an even number;
// k_i is a key word, a function of the key and of i alone (PageKeyWord). All arithmetic on words is
// mod 2^32, products and sums are of 64 bits:
//   first  = sum over pairs i = 0, 2, 4, … of (w_i + k_i)      * (w_{i+1} + k_{i+1})
//   second = sum over pairs i = 0, 2, 4, … of (w_i + k_{i+16}) * (w_{i+1} + k_{i+17})
// The sums do not care for order, so any number of threads may make them in pieces: every
// processor's form gives the same value. What they are good for and how a checksum is made of them:
// services/transport/page_checksum.h.
//
// Device code reaches constexpr functions through --expt-relaxed-constexpr.
#pragma once

#include <stdint.h>

namespace sluice {

// The two halves of what key words are made of.
struct PageKey {
  uint32_t offset = 0;
  uint32_t twist = 0;
};

struct PageSums {
  uint64_t first = 0;
  uint64_t second = 0;
};

inline constexpr uint32_t kPageKeyStep = 0x9E3779B9u;
inline constexpr uint32_t kPageKeyMultiplier1 = 0x7FEB352Du;
inline constexpr uint32_t kPageKeyMultiplier2 = 0x846CA68Bu;
inline constexpr uint32_t kPageSumShift = 16;  // words between the keys of the two sums

// k_i.
constexpr uint32_t PageKeyWord(const PageKey& key, uint32_t index) {
  uint32_t x = index * kPageKeyStep + key.offset;
  x ^= x >> 16;
  x = (x * kPageKeyMultiplier1) ^ key.twist;
  x ^= x >> 15;
  x *= kPageKeyMultiplier2;
  return x ^ (x >> 16);
}

}  // namespace sluice
