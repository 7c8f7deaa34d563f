// The checksum that goes with every page of KV: a keyed sum over the page's words, bound to the
// lease, the layer and the page.
//
// Definition. The sums of kernels/base/page_sum.h, which any processor makes in any order; then
// second mixed into first mixed into (key, lease, layer, page, length) by a bijective finaliser.
//
// Collisions. This is NH with a Toeplitz shift: for key words drawn at random, two different pages
// of the same length agree in both sums with probability at most 2^-64, whatever the damage
// (changed bits; swapped words, rows or pages), and the finaliser adds about 2^-64. Two pages that
// differ in one word alone, in `first` alone: at most 2^-32. The key words come from a mixer, not
// from a cipher: this is a guard against damage and mistakes, not against a forger who knows the
// key. Source: Black, Halevi, Krawczyk, Krovetz, Rogaway, "UMAC: fast and secure message
// authentication", CRYPTO 1999, theorems 1 and 3.
//
// Threads: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/base/page_sum.h"

namespace sluice::transport {

// What a page is, apart from its bytes.
struct PageTag {
  uint64_t lease = 0;
  uint32_t layer = 0;
  uint32_t page = 0;  // index in the sequence
};

uint64_t PageChecksum(uint64_t key, const PageTag& tag, absl::Span<const std::byte> bytes);

// Copies the bytes to `to`, which must not overlap them, and gives the checksum of the copy: each
// byte is read once, so that it holds of memory too that somebody else changes meanwhile. A page
// costs a quarter less than copied and summed in two passes.
uint64_t CopyWithChecksum(uint64_t key, const PageTag& tag, absl::Span<const std::byte> bytes,
                          std::byte* to);

// --- The parts, for tests and for other processors' forms ---

// Of which the key words are made.
PageKey ExpandKey(uint64_t checksum_key);

uint64_t FinishChecksum(uint64_t key, const PageTag& tag, uint64_t bytes, const PageSums& sums);

// One function for each instruction set; all give the same.
struct PageSumKernel {
  const char* name;
  PageSums (*sum)(const PageKey& key, absl::Span<const std::byte> bytes);
  PageSums (*copy)(const PageKey& key, absl::Span<const std::byte> bytes, std::byte* to);
};
// Those that this machine can run, the fastest last.
absl::Span<const PageSumKernel> PageSumKernels();

}  // namespace sluice::transport
