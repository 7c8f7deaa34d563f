// Any bytes as tokenizer.json. What is accepted must encode and decode without harm; it is only fed
// a short text, for its regular expressions may be as slow as their limits allow.

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "services/model/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using sluice::model::Tokenizer;
  const absl::string_view json(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = Tokenizer::FromJson(json, "");
  if (!tokenizer.ok()) {
    if (tokenizer.status().message().size() > 2000) std::abort();
    return 0;
  }
  const auto ids = (*tokenizer)->EncodePrompt("It's 1 <b> \xFF\n");
  if (!ids.ok()) return 0;
  for (const int32_t id : *ids) {
    if (id < 0 || id >= (*tokenizer)->vocab_size()) std::abort();
  }
  (*tokenizer)->Decode(*ids, /*skip_special=*/true);
  return 0;
}
