#include "services/router/json_writer.h"

#include <array>
#include <charconv>
#include <cstdint>

#include "services/model/utf8.h"

namespace sluice::router {
namespace {

constexpr bool NeedsEscape(unsigned char c) { return c < 0x20 || c == '"' || c == '\\'; }

void AppendEscape(unsigned char c, std::string* out) {
  constexpr char kHex[] = "0123456789abcdef";
  switch (c) {
    case '"':
      out->append("\\\"");
      return;
    case '\\':
      out->append("\\\\");
      return;
    case '\n':
      out->append("\\n");
      return;
    case '\r':
      out->append("\\r");
      return;
    case '\t':
      out->append("\\t");
      return;
    default:
      out->append("\\u00");
      out->push_back(kHex[c >> 4]);
      out->push_back(kHex[c & 15]);
  }
}

void AppendValid(absl::string_view text, std::string* out) {
  size_t start = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (!NeedsEscape(c)) continue;
    out->append(text.data() + start, i - start);
    AppendEscape(c, out);
    start = i + 1;
  }
  out->append(text.data() + start, text.size() - start);
}

}  // namespace

void AppendJsonString(absl::string_view text, std::string* out) {
  out->push_back('"');
  if (model::IsValidUtf8(text)) {
    AppendValid(text, out);
  } else {
    AppendValid(model::ReplaceInvalidUtf8(text), out);
  }
  out->push_back('"');
}

void AppendLogprob(float value, std::string* out) {
  if (!(value >= -9999.0f)) value = -9999.0f;
  if (value > 9999.0f) value = 9999.0f;
  std::array<char, 32> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  const absl::string_view text(digits.data(), static_cast<size_t>(end - digits.data()));
  out->append(text.data(), text.size());
  if (text.find_first_of(".e") == absl::string_view::npos) out->append(".0");
}

}  // namespace sluice::router
