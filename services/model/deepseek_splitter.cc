#include "services/model/deepseek_splitter.h"

#include <cstdint>

#include "services/model/unicode_classes.h"
#include "services/model/utf8.h"

namespace sluice::model {
namespace {

bool IsCjk(char32_t c) {  // the second pattern's class
  return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF);
}

bool IsNewline(char c) { return c == '\r' || c == '\n'; }
bool IsAsciiLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

bool IsAsciiPunctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
         (c >= '{' && c <= '~');
}

// The end of the run of characters from `p` on for which `is_in` holds.
template <typename Predicate>
const char* SkipWhile(const char* p, const char* end, Predicate is_in) {
  while (p < end) {
    const DecodedChar c = DecodeUtf8(p);
    if (!is_in(CharClassOf(c.code))) break;
    p += c.bytes;
  }
  return p;
}

bool IsLetterOrMark(CharClass c) { return c.is_letter_or_mark(); }
bool IsPunctuationOrSymbol(CharClass c) { return c.is_punctuation_or_symbol(); }
bool IsSpace(CharClass c) { return c.is_space(); }

const char* SkipNewlines(const char* p, const char* end) {
  while (p < end && IsNewline(*p)) ++p;
  return p;
}

// `\s*[\r\n]+|\s+(?!\S)|\s+` at white space.
const char* MatchSpace(const char* p, const char* end) {
  const char* const run_end = SkipWhile(p, end, IsSpace);
  for (const char* q = run_end; q > p; --q) {
    if (IsNewline(q[-1])) return q;
  }
  if (run_end == end) return run_end;
  // The last white-space character stays with what follows, unless it is the only one.
  const char* const last = run_end - DecodeUtf8Before(run_end).bytes;
  return last > p ? last : run_end;
}

// The end of the third pattern's match at `p`, or `p` if it does not match there.
const char* MatchMain(const char* p, const char* end) {
  if (IsAsciiPunctuation(*p) && p + 1 < end && IsAsciiLetter(p[1])) {
    for (p += 2; p < end && IsAsciiLetter(*p);) ++p;
    return p;
  }
  const DecodedChar first = DecodeUtf8(p);
  const CharClass first_class = CharClassOf(first.code);
  const char* const second = p + first.bytes;
  if (first_class.is_letter_or_mark()) return SkipWhile(second, end, IsLetterOrMark);
  if (!first_class.is_punctuation_or_symbol() && !IsNewline(*p)) {
    const char* const letters_end = SkipWhile(second, end, IsLetterOrMark);
    if (letters_end > second) return letters_end;
  }
  const char* const symbols = *p == ' ' ? second : p;
  const char* const symbols_end = SkipWhile(symbols, end, IsPunctuationOrSymbol);
  if (symbols_end > symbols) return SkipNewlines(symbols_end, end);
  return first_class.is_space() ? MatchSpace(p, end) : p;
}

// The third pattern over a piece that the first two left in one.
void SplitMain(const char* p, const char* end, absl::FunctionRef<void(absl::string_view)> emit) {
  const char* unmatched = p;  // a gap between matches is a piece, too
  while (p < end) {
    const char* const match_end = MatchMain(p, end);
    if (match_end == p) {
      p += DecodeUtf8(p).bytes;
      continue;
    }
    if (unmatched < p) emit(absl::string_view(unmatched, p - unmatched));
    emit(absl::string_view(p, match_end - p));
    p = unmatched = match_end;
  }
  if (unmatched < end) emit(absl::string_view(unmatched, end - unmatched));
}

}  // namespace

void SplitDeepSeek(absl::string_view text, absl::FunctionRef<void(absl::string_view)> emit) {
  enum class Kind { kNumber, kCjk, kRest };
  const auto kind_of = [](char32_t c) {
    if (CharClassOf(c).is_number()) return Kind::kNumber;
    return IsCjk(c) ? Kind::kCjk : Kind::kRest;
  };
  const char* p = text.data();
  const char* const end = p + text.size();
  while (p < end) {
    const char* const begin = p;
    const DecodedChar first = DecodeUtf8(p);
    const Kind kind = kind_of(first.code);
    p += first.bytes;
    for (int chars = 1; p < end && (kind != Kind::kNumber || chars < 3); ++chars) {
      const DecodedChar c = DecodeUtf8(p);
      if (kind_of(c.code) != kind) break;
      p += c.bytes;
    }
    if (kind == Kind::kNumber) {
      emit(absl::string_view(begin, p - begin));
    } else {
      SplitMain(begin, p, emit);
    }
  }
}

}  // namespace sluice::model
