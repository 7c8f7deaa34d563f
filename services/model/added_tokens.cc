#include "services/model/added_tokens.h"

#include <algorithm>
#include <utility>

#include "services/model/unicode_classes.h"
#include "services/model/utf8.h"

namespace sluice::model {
namespace {

bool IsRecognised(const AddedToken& token, AddedTokenMode mode) {
  switch (mode) {
    case AddedTokenMode::kAll:
      return true;
    case AddedTokenMode::kNonSpecial:
      return !token.special;
    case AddedTokenMode::kPlainText:
      return token.IsPlainText();
  }
  return false;
}

bool TouchesWord(absl::string_view text, size_t begin, size_t end) {
  if (begin > 0 && CharClassOf(DecodeUtf8Before(text.data() + begin).code).is_word()) return true;
  return end < text.size() && CharClassOf(DecodeUtf8(text.data() + end).code).is_word();
}

// Moves `at` left over white space, not beyond `limit`.
size_t SpaceBefore(absl::string_view text, size_t at, size_t limit) {
  while (at > limit) {
    const DecodedChar c = DecodeUtf8Before(text.data() + at);
    if (!CharClassOf(c.code).is_space()) break;
    at -= c.bytes;
  }
  return at;
}

size_t SpaceAfter(absl::string_view text, size_t at) {
  while (at < text.size()) {
    const DecodedChar c = DecodeUtf8(text.data() + at);
    if (!CharClassOf(c.code).is_space()) break;
    at += c.bytes;
  }
  return at;
}

}  // namespace

bool AddedToken::IsPlainText() const {
  constexpr absl::string_view kBrackets[] = {"<", ">", "[", "]", "|", "｜"};
  return !special && std::none_of(std::begin(kBrackets), std::end(kBrackets), [&](auto bracket) {
    return absl::string_view(content).find(bracket) != absl::string_view::npos;
  });
}

void AddedTokens::Trie::Add(absl::string_view content, int32_t index) {
  if (token.empty()) token.push_back(-1);
  starts[static_cast<uint8_t>(content[0])] = true;
  uint64_t node = 0;
  for (const char c : content) {
    const auto [child, is_new] =
        children.emplace(node << 8 | static_cast<uint8_t>(c), static_cast<int32_t>(token.size()));
    if (is_new) token.push_back(-1);
    node = child->second;
  }
  token[node] = index;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const int32_t index = static_cast<int32_t>(i);
    index_of_content_.emplace(tokens_[i].content, index);
    (tokens_[i].normalized ? normalized_ : not_normalized_).Add(tokens_[i].content, index);
  }
}

const AddedToken* AddedTokens::Find(absl::string_view content) const {
  const auto found = index_of_content_.find(content);
  return found == index_of_content_.end() ? nullptr : &tokens_[found->second];
}

absl::Status AddedTokens::Split(absl::string_view text, AddedTokenMode mode, Emit emit) const {
  return SplitPass(
      not_normalized_, text, mode, [&](absl::string_view piece, const AddedToken* token) {
        return token != nullptr ? emit(piece, token) : SplitPass(normalized_, piece, mode, emit);
      });
}

const AddedToken* AddedTokens::LongestAt(const Trie& trie, absl::string_view text,
                                         size_t at) const {
  int32_t longest = -1;
  uint64_t node = 0;
  for (; at < text.size(); ++at) {
    const auto child = trie.children.find(node << 8 | static_cast<uint8_t>(text[at]));
    if (child == trie.children.end()) break;
    node = child->second;
    if (trie.token[node] >= 0) longest = trie.token[node];
  }
  return longest < 0 ? nullptr : &tokens_[longest];
}

absl::Status AddedTokens::SplitPass(const Trie& trie, absl::string_view text, AddedTokenMode mode,
                                    Emit emit) const {
  size_t done = 0;  // emitted up to here
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token =
        trie.starts[static_cast<uint8_t>(text[at])] ? LongestAt(trie, text, at) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at = begin + token->content.size();
    if (!IsRecognised(*token, mode)) continue;
    if (token->single_word && TouchesWord(text, begin, end)) continue;
    if (token->lstrip) begin = std::max(done, SpaceBefore(text, begin, 0));
    if (token->rstrip) end = SpaceAfter(text, end);
    if (done < begin) {
      const absl::Status status = emit(text.substr(done, begin - done), nullptr);
      if (!status.ok()) return status;
    }
    const absl::Status status = emit(absl::string_view(), token);
    if (!status.ok()) return status;
    done = end;
  }
  return done < text.size() ? emit(text.substr(done), nullptr) : absl::OkStatus();
}

}  // namespace sluice::model
