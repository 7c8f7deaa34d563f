// UTF-8: decoding what is known to be valid, and repairing what may not be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace sluice::model {

struct DecodedChar {
  char32_t code;
  uint32_t bytes;  // 1 to 4
};

// The character that starts at `p`. REQUIRES: `p` points at the start of a valid character.
inline DecodedChar DecodeUtf8(const char* p) {
  const auto byte = [p](int i) { return static_cast<uint32_t>(static_cast<uint8_t>(p[i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F),
          4};
}

// The character that ends just before `end`. REQUIRES: the text before `end` is valid, not empty.
inline DecodedChar DecodeUtf8Before(const char* end) {
  const char* p = end - 1;
  while ((static_cast<uint8_t>(*p) & 0xC0) == 0x80) --p;
  return DecodeUtf8(p);
}

bool IsValidUtf8(absl::string_view bytes);

// Appends `bytes` to `out`, with U+FFFD for each maximal part that begins like a character but is
// none, or for one byte that cannot begin any, as Python's errors="replace" and Rust's
// from_utf8_lossy do. A possible beginning of a character at the end of `bytes` is left alone.
// Returns the number of bytes consumed: all but the at most 3 of that beginning.
size_t AppendLossyUtf8(absl::string_view bytes, std::string* out);

// Python's bytes.decode("utf-8", errors="replace").
std::string ReplaceInvalidUtf8(absl::string_view bytes);

// A text as it may stand in an error message: cut when long, at a whole character.
std::string Shorten(absl::string_view text);

inline constexpr absl::string_view kReplacementChar = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace sluice::model
