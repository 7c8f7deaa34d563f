#include "services/model/pre_tokenizer.h"

#include <utility>

#include "absl/strings/str_replace.h"
#include "services/model/deepseek_splitter.h"
#include "services/model/unicode_classes.h"
#include "services/model/utf8.h"

namespace sluice::model {
namespace {

bool IsDeepSeek(const std::vector<PreTokenizer::Step>& steps) {
  if (steps.size() != std::size(kDeepSeekPatterns)) return false;
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto* regex = std::get_if<PreTokenizer::Regex>(&steps[i]);
    // Line ends are written as themselves or as escapes, depending on who saved the file.
    if (regex == nullptr || absl::StrReplaceAll(regex->pattern, {{"\\r", "\r"}, {"\\n", "\n"}}) !=
                                kDeepSeekPatterns[i]) {
      return false;
    }
  }
  return true;
}

absl::Status SplitDigits(bool individual, absl::string_view text,
                         absl::FunctionRef<absl::Status(absl::string_view)> emit) {
  size_t begin = 0;
  bool was_digit = false;
  for (size_t i = 0; i < text.size();) {
    const DecodedChar c = DecodeUtf8(text.data() + i);
    const bool is_digit = CharClassOf(c.code).is_digit();
    if (i > begin && (is_digit != was_digit || (is_digit && individual))) {
      const absl::Status status = emit(text.substr(begin, i - begin));
      if (!status.ok()) return status;
      begin = i;
    }
    was_digit = is_digit;
    i += c.bytes;
  }
  return begin < text.size() ? emit(text.substr(begin)) : absl::OkStatus();
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const std::vector<Step>& steps,
                                                  bool use_fast_path) {
  PreTokenizer result;
  if (use_fast_path && IsDeepSeek(steps)) {
    result.is_deepseek_ = true;
    return result;
  }
  for (const Step& step : steps) {
    if (const auto* digits = std::get_if<Digits>(&step)) {
      result.steps_.emplace_back(*digits);
      continue;
    }
    const auto* literal = std::get_if<Literal>(&step);
    absl::StatusOr<OnigRegex> regex = literal != nullptr
                                          ? OnigRegex::CreateLiteral(literal->text)
                                          : OnigRegex::Create(std::get<Regex>(step).pattern);
    if (!regex.ok()) return regex.status();
    result.steps_.emplace_back(*std::move(regex));
  }
  return result;
}

absl::Status PreTokenizer::Split(absl::string_view text,
                                 absl::FunctionRef<void(absl::string_view)> emit) const {
  if (is_deepseek_) {
    SplitDeepSeek(text, emit);
    return absl::OkStatus();
  }
  return SplitFrom(0, text, emit);
}

absl::Status PreTokenizer::SplitFrom(size_t step, absl::string_view text,
                                     absl::FunctionRef<void(absl::string_view)> emit) const {
  if (text.empty()) return absl::OkStatus();
  if (step == steps_.size()) {
    emit(text);
    return absl::OkStatus();
  }
  const auto next = [&](absl::string_view piece) { return SplitFrom(step + 1, piece, emit); };
  if (const auto* digits = std::get_if<Digits>(&steps_[step])) {
    return SplitDigits(digits->individual, text, next);
  }
  return std::get<OnigRegex>(steps_[step]).Split(text, next);
}

}  // namespace sluice::model
