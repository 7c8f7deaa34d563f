// Any bytes as a text, in each mode: decoding its ids gives the (repaired) text back, all at once
// and token by token, and contents of messages never give a control token.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "services/model/detokenizer.h"
#include "services/model/tokenizer.h"
#include "services/model/utf8.h"

namespace sluice::model {
namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

std::string Utf8(char32_t c) {
  if (c < 0x80) return std::string(1, static_cast<char>(c));
  return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
}

// The byte-level alphabet, merges of letters, digits and blanks, and control tokens.
std::unique_ptr<const Tokenizer> MakeTokenizer() {
  const auto is_itself = [](int b) {
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
  };
  nlohmann::json vocab;
  int id = 0;
  int next = 0x100;
  for (int b = 0; b < 256; ++b) vocab[Utf8(is_itself(b) ? b : next++)] = id++;
  nlohmann::json merges = nlohmann::json::array();
  for (const auto& [left, right] : std::vector<std::pair<std::string, std::string>>{
           {"a", "a"}, {"aa", "aa"}, {"Ġ", "a"}, {"Ġ", "Ġ"}, {"1", "1"}, {"Ã", "©"}, {"t", "h"}}) {
    merges.push_back({left, right});
    vocab[left + right] = id++;
  }
  nlohmann::json added = nlohmann::json::array();
  for (const char* content : {"<think>", "</think>", "<｜User｜>", "<|EOT|>"}) {
    added.push_back({{"id", id++}, {"content", content}, {"special", content[1] == '|'}});
  }
  const auto split = [](const char* pattern) {
    return nlohmann::json{
        {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}};
  };
  const nlohmann::json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const nlohmann::json json = {
      {"added_tokens", added},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers",
         {split("\\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"),
          split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
                "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
          byte_level}}}},
      {"decoder", byte_level},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
  auto tokenizer = Tokenizer::FromJson(json.dump(), "");
  Check(tokenizer.ok());
  return *std::move(tokenizer);
}

}  // namespace
}  // namespace sluice::model

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice::model;
  static const auto* const tokenizer = new std::unique_ptr<const Tokenizer>(MakeTokenizer());
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  for (const AddedTokenMode mode :
       {AddedTokenMode::kAll, AddedTokenMode::kNonSpecial, AddedTokenMode::kPlainText}) {
    const auto ids = (*tokenizer)->Encode(text, {.added_tokens = mode});
    Check(ids.ok());
    const std::string decoded = (*tokenizer)->Decode(*ids, /*skip_special=*/false);
    Check(decoded == ReplaceInvalidUtf8(text));
    Detokenizer detokenizer(**tokenizer, /*skip_special=*/false);
    std::string streamed;
    for (const int32_t id : *ids) {
      const std::string piece = detokenizer.Feed(id);
      Check(IsValidUtf8(piece));
      streamed += piece;
      if (mode == AddedTokenMode::kPlainText) {
        Check(!(*tokenizer)->AddedTokenId((*tokenizer)->TokenBytes(id)));
      }
    }
    Check(streamed + detokenizer.Flush() == decoded);
  }
  return 0;
}
