#include "services/model/utf8.h"

#include <simdjson.h>

namespace sluice::model {
namespace {

// How the characters that begin with a certain byte go on; bytes = 0: none begins with it.
struct Lead {
  uint8_t bytes;       // of the whole character
  uint8_t second_min;  // the second byte's range; later ones are 0x80 to 0xBF
  uint8_t second_max;
};

Lead LeadOf(uint8_t b) {
  if (b < 0x80) return {1, 0, 0};
  if (b < 0xC2) return {0, 0, 0};
  if (b < 0xE0) return {2, 0x80, 0xBF};
  if (b == 0xE0) return {3, 0xA0, 0xBF};
  if (b == 0xED) return {3, 0x80, 0x9F};  // no surrogates
  if (b < 0xF0) return {3, 0x80, 0xBF};
  if (b == 0xF0) return {4, 0x90, 0xBF};
  if (b < 0xF4) return {4, 0x80, 0xBF};
  if (b == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

constexpr size_t kShownBytesMax = 80;

}  // namespace

bool IsValidUtf8(absl::string_view bytes) {
  return simdjson::validate_utf8(bytes.data(), bytes.size());
}

size_t AppendLossyUtf8(absl::string_view bytes, std::string* out) {
  size_t i = 0;
  while (i < bytes.size()) {
    const Lead lead = LeadOf(static_cast<uint8_t>(bytes[i]));
    size_t good = 1;  // bytes from i that begin a character
    while (good < lead.bytes && i + good < bytes.size()) {
      const uint8_t b = static_cast<uint8_t>(bytes[i + good]);
      const uint8_t min = good == 1 ? lead.second_min : 0x80;
      const uint8_t max = good == 1 ? lead.second_max : 0xBF;
      if (b < min || b > max) break;
      ++good;
    }
    if (good == lead.bytes) {
      out->append(bytes.data() + i, good);
    } else if (lead.bytes != 0 && i + good == bytes.size()) {
      return i;  // may go on
    } else {
      out->append(kReplacementChar.data(), kReplacementChar.size());
    }
    i += good;
  }
  return i;
}

std::string ReplaceInvalidUtf8(absl::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  if (AppendLossyUtf8(bytes, &out) < bytes.size()) {
    out.append(kReplacementChar.data(), kReplacementChar.size());
  }
  return out;
}

std::string Shorten(absl::string_view text) {
  if (text.size() <= kShownBytesMax) return std::string(text);
  std::string cut;
  AppendLossyUtf8(text.substr(0, kShownBytesMax), &cut);
  return cut + "...";
}

}  // namespace sluice::model
