// Token ids to text, one token at a time, without ever emitting half a character.
#pragma once

#include <cstdint>
#include <string>

#include "services/model/tokenizer.h"

namespace sluice::model {

// The concatenation of all Feed() results and Flush() equals tokenizer.Decode(ids, skip_special).
//
// Threads: one at a time. The tokenizer must outlive it.
class Detokenizer {
 public:
  // skip_special: special tokens (Tokenizer::IsSpecial) give no text.
  Detokenizer(const Tokenizer& tokenizer, bool skip_special);

  // The text that is certain once `id` is known: whole characters only. Bytes that can no longer
  // become a character come out as U+FFFD; at most 3 bytes are held back.
  std::string Feed(int32_t id);

  // What was held back, as U+FFFD; afterwards the object is as new.
  std::string Flush();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_;
  std::string pending_;  // the beginning of a character, at most 3 bytes
};

}  // namespace sluice::model
