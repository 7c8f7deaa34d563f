#include "services/model/onig_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "services/model/utf8.h"

namespace sluice::model {
namespace {

// White_Space, for the inside of a class. PCRE2's own \s also has U+180E, Oniguruma's has not.
constexpr absl::string_view kSpaceClass =
    R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

constexpr size_t kJitStackBytesMin = 32 * 1024;
constexpr size_t kJitStackBytesMax = 4 * 1024 * 1024;
// Of steps that one match may take. A long run of blanks takes some for each of them; what takes
// more than that is a pattern that runs wild.
constexpr size_t kMatchLimit = 10'000'000;
constexpr size_t kMatchesPerByte = 8;

bool IsAsciiLetterOrDigit(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Rewrites one pattern for PCRE2, reading it left to right.
class Translator {
 public:
  explicit Translator(absl::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < pattern_.size()) {
      const absl::Status status = Next();
      if (!status.ok()) return status;
    }
    if (in_class_) return Refuse("a class that does not end");
    return std::move(out_);
  }

 private:
  absl::Status Refuse(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("regular expression ", Shorten(pattern_),
                                                   " at byte ", at_, ": ", what,
                                                   " is not supported"));
  }

  bool StartsWith(absl::string_view text) const {
    return pattern_.substr(at_, text.size()) == text;
  }

  void Copy(size_t bytes) {
    out_.append(pattern_.data() + at_, bytes);
    at_ += bytes;
  }

  absl::Status Next() {
    const char c = pattern_[at_];
    if (c == '\\') return Escape();
    if (in_class_) {
      if (c == '[') return Refuse("a class in a class");
      if (StartsWith("&&")) return Refuse("an intersection of classes");
      if (c == ']') in_class_ = false;
    } else if (c == '[') {
      in_class_ = true;
      if (StartsWith("[]") || StartsWith("[^]")) return Refuse("] first in a class");
      if (StartsWith("[^")) Copy(1);
    } else if (StartsWith("{,")) {
      return Refuse("{,n}");
    } else if (StartsWith("}+")) {
      return Refuse("+ after {n,m}");
    } else if (StartsWith("(?")) {
      return Group();
    } else if (StartsWith("(*")) {
      return Refuse("(*");
    }
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Group() {
    for (const absl::string_view known : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"}) {
      if (StartsWith(known)) {
        Copy(known.size());
        return absl::OkStatus();
      }
    }
    return Refuse("this kind of group");
  }

  absl::Status Escape() {
    if (at_ + 1 == pattern_.size()) return Refuse("a \\ at the end");
    const char c = pattern_[at_ + 1];
    if (c == 's' || (c == 'S' && !in_class_)) {
      if (in_class_) {
        absl::StrAppend(&out_, kSpaceClass);
      } else {
        absl::StrAppend(&out_, c == 's' ? "[" : "[^", kSpaceClass, "]");
      }
      at_ += 2;
      return absl::OkStatus();
    }
    constexpr absl::string_view kSameInBoth = "nrtfdDpPx";
    if (IsAsciiLetterOrDigit(c) && kSameInBoth.find(c) == absl::string_view::npos) {
      return Refuse(absl::StrCat("\\", pattern_.substr(at_ + 1, 1)));
    }
    Copy(2);
    if (absl::string_view("pPx").find(c) != absl::string_view::npos && StartsWith("{")) {
      const size_t end = pattern_.find('}', at_);
      if (end == absl::string_view::npos) return Refuse("{ without }");
      Copy(end + 1 - at_);
    }
    return absl::OkStatus();
  }

  const absl::string_view pattern_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

// What one thread needs to run any pattern.
class Matcher {
 public:
  static Matcher& OfThisThread() {
    thread_local Matcher matcher;
    return matcher;
  }

  // The first match in `text` from `from` on: its begin and end in ovector(), or PCRE2's error.
  int Match(const pcre2_code* code, absl::string_view text, size_t from) {
    const int found = Match(code, text, from, PCRE2_NO_UTF_CHECK);
    // A match as long as millions of characters takes more stack than compiled patterns have. The
    // interpreter goes back through it on the heap.
    if (found != PCRE2_ERROR_JIT_STACKLIMIT) return found;
    return Match(code, text, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
  }
  const PCRE2_SIZE* ovector() const { return pcre2_get_ovector_pointer(data_); }

 private:
  int Match(const pcre2_code* code, absl::string_view text, size_t from, uint32_t options) {
    pcre2_set_match_limit(context_, static_cast<uint32_t>(std::min<size_t>(
                                        kMatchLimit + kMatchesPerByte * text.size(), UINT32_MAX)));
    return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from, options,
                       data_, context_);
  }

  Matcher()
      : data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        jit_stack_(pcre2_jit_stack_create(kJitStackBytesMin, kJitStackBytesMax, nullptr)) {
    pcre2_jit_stack_assign(context_, nullptr, jit_stack_);
  }
  ~Matcher() {
    pcre2_jit_stack_free(jit_stack_);
    pcre2_match_context_free(context_);
    pcre2_match_data_free(data_);
  }

  pcre2_match_data* data_;
  pcre2_match_context* context_;
  pcre2_jit_stack* jit_stack_;
};

std::string ErrorText(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

OnigRegex::OnigRegex(pcre2_real_code_8* code)
    : code_(code, [](const pcre2_real_code_8* c) {
        pcre2_code_free(const_cast<pcre2_real_code_8*>(c));
      }) {}

absl::StatusOr<OnigRegex> OnigRegex::Create(absl::string_view pattern) {
  const absl::StatusOr<std::string> translated = Translator(pattern).Run();
  if (!translated.ok()) return translated.status();
  return Compile(*translated, pattern);
}

absl::StatusOr<OnigRegex> OnigRegex::CreateLiteral(absl::string_view text) {
  std::string quoted;
  for (const char c : text) {
    if (static_cast<uint8_t>(c) < 0x80 && !IsAsciiLetterOrDigit(c)) quoted.push_back('\\');
    quoted.push_back(c);
  }
  return Compile(quoted, text);
}

absl::StatusOr<OnigRegex> OnigRegex::Compile(const std::string& pcre2_pattern,
                                             absl::string_view shown) {
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE error_at = 0;
  // Oniguruma's ^ and $ are at every line's ends.
  constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pcre2_pattern.data()),
                                   pcre2_pattern.size(), kOptions, &error, &error_at, context);
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression ", Shorten(shown), ": ", ErrorText(error)));
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it cannot, the interpreter does the same
  return OnigRegex(code);
}

absl::Status OnigRegex::Split(absl::string_view text,
                              absl::FunctionRef<absl::Status(absl::string_view)> emit) const {
  Matcher& matcher = Matcher::OfThisThread();
  size_t done = 0;  // emitted up to here
  size_t from = 0;
  while (from < text.size()) {
    const int found = matcher.Match(code_.get(), text, from);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      return absl::InternalError(
          absl::StrCat("tokenizer: regular expression at byte ", from, ": ", ErrorText(found)));
    }
    const size_t begin = matcher.ovector()[0];
    const size_t end = matcher.ovector()[1];
    if (begin > done) {
      const absl::Status status = emit(text.substr(done, begin - done));
      if (!status.ok()) return status;
      done = begin;
    }
    if (end > begin) {
      const absl::Status status = emit(text.substr(begin, end - begin));
      if (!status.ok()) return status;
      done = from = end;
    } else {  // an empty match: look on from the next character
      from = end + 1;
      while (from < text.size() && (static_cast<uint8_t>(text[from]) & 0xC0) == 0x80) ++from;
    }
  }
  return done < text.size() ? emit(text.substr(done)) : absl::OkStatus();
}

}  // namespace sluice::model
