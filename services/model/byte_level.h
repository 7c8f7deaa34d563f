// The alphabet of byte-level BPE files: each byte is written as one printable character.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace sluice::model {

// The bytes that a token, as tokenizer.json writes it ("Ġthe"), stands for; nothing if some of its
// characters stand for no byte. REQUIRES: `token` is valid UTF-8.
// Source: GPT-2's bytes_to_unicode; Hugging Face tokenizers, pre_tokenizers/byte_level.rs.
std::optional<std::string> ByteLevelToBytes(absl::string_view token);

}  // namespace sluice::model
