#include "services/model/byte_level.h"

#include <array>
#include <cstdint>

#include "services/model/utf8.h"

namespace sluice::model {
namespace {

constexpr int kNoByte = -1;

bool IsWrittenAsItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

// Bytes that are printable in Latin-1 are written as themselves; the others as U+0100 and on.
std::array<int, 0x200> MakeByteOfChar() {
  std::array<int, 0x200> byte_of_char;
  byte_of_char.fill(kNoByte);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    byte_of_char[IsWrittenAsItself(byte) ? byte : next++] = byte;
  }
  return byte_of_char;
}

}  // namespace

std::optional<std::string> ByteLevelToBytes(absl::string_view token) {
  static const std::array<int, 0x200> byte_of_char = MakeByteOfChar();
  std::string bytes;
  for (size_t i = 0; i < token.size();) {
    const DecodedChar c = DecodeUtf8(token.data() + i);
    if (c.code >= byte_of_char.size() || byte_of_char[c.code] == kNoByte) return std::nullopt;
    bytes.push_back(static_cast<char>(byte_of_char[c.code]));
    i += c.bytes;
  }
  return bytes;
}

}  // namespace sluice::model
