#include "services/model/detokenizer.h"

#include <utility>

#include "services/model/utf8.h"

namespace sluice::model {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special) {}

std::string Detokenizer::Feed(int32_t id) {
  std::string text;
  if (skip_special_ && tokenizer_.IsSpecial(id)) return text;
  const absl::string_view bytes = tokenizer_.TokenBytes(id);
  pending_.append(bytes.data(), bytes.size());
  pending_.erase(0, AppendLossyUtf8(pending_, &text));
  return text;
}

std::string Detokenizer::Flush() { return ReplaceInvalidUtf8(std::exchange(pending_, {})); }

}  // namespace sluice::model
