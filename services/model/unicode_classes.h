// What kind of character a code point is, as Hugging Face `tokenizers` sees it.
#pragma once

#include <cstdint>

namespace sluice::model {

enum class CharCategory : uint8_t {
  kOther = 0,  // control, format, private use, unassigned, separators
  kLetter = 1,
  kMark = 2,
  kNumber = 3,
  kPunctuation = 4,
  kSymbol = 5,
};

class CharClass {
 public:
  constexpr explicit CharClass(uint8_t bits) : bits_(bits) {}

  CharCategory category() const { return static_cast<CharCategory>(bits_ & 7); }
  bool is_space() const { return (bits_ & 8) != 0; }   // \s: White_Space
  bool is_word() const { return (bits_ & 16) != 0; }   // \w of Rust's regex crate
  bool is_digit() const { return (bits_ & 32) != 0; }  // char::is_numeric of Rust
  bool is_number() const { return category() == CharCategory::kNumber; }
  bool is_letter_or_mark() const {
    return category() == CharCategory::kLetter || category() == CharCategory::kMark;
  }
  bool is_punctuation_or_symbol() const {
    return category() == CharCategory::kPunctuation || category() == CharCategory::kSymbol;
  }

 private:
  uint8_t bits_;
};

// One byte per code point up to 0x10FFFF, for CharClassOf; made on first use and kept.
const uint8_t* CharClassTable();

// The table is the reference's own (Unicode 16 for tokenizers 0.23), see unicode_classes.inc.
inline CharClass CharClassOf(char32_t c) {
  static const uint8_t* const table = CharClassTable();
  return CharClass(table[c]);
}

}  // namespace sluice::model
