#include "services/model/tokenizer.h"

#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/base/mapped_file.h"
#include "services/model/added_tokens.h"
#include "services/model/bpe.h"
#include "services/model/pre_tokenizer.h"
#include "services/model/tokenizer_json.h"
#include "services/model/utf8.h"

namespace sluice::model {
namespace {

// English has about this many bytes a token; a first guess for the result's capacity.
constexpr size_t kBytesPerTokenGuess = 4;

constexpr size_t kTokenizerFileBytesMax = size_t{256} << 20;
constexpr size_t kSmallFileBytesMax = size_t{16} << 20;

absl::Status In(absl::string_view file, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(file, ": ", status.message()));
}

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(PreTokenizer pre_tokenizer, Bpe bpe, AddedTokens added_tokens,
               std::vector<std::string> token_bytes)
      : pre_tokenizer_(std::move(pre_tokenizer)),
        bpe_(std::move(bpe)),
        added_tokens_(std::move(added_tokens)),
        token_bytes_(std::move(token_bytes)),
        is_special_(token_bytes_.size()) {
    for (const AddedToken& token : added_tokens_.tokens()) is_special_[token.id] = token.special;
  }

  // Takes over what tokenizer_config.json says; `first_token` comes from tokenizer.json.
  absl::Status Configure(TokenizerConfigJson config, const std::optional<std::string>& first_token);

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              const EncodeOptions& options) const override;

  absl::string_view TokenBytes(int32_t id) const override {
    return IsKnown(id) ? absl::string_view(token_bytes_[id]) : absl::string_view();
  }
  std::optional<int32_t> AddedTokenId(absl::string_view content) const override {
    const AddedToken* token = added_tokens_.Find(content);
    return token == nullptr ? std::nullopt : std::optional<int32_t>(token->id);
  }
  bool IsSpecial(int32_t id) const override { return IsKnown(id) && is_special_[id]; }
  int32_t vocab_size() const override { return static_cast<int32_t>(token_bytes_.size()); }
  int32_t bos_id() const override { return bos_id_; }
  int32_t eos_id() const override { return eos_id_; }
  int32_t pad_id() const override { return pad_id_; }
  bool add_bos_token() const override { return add_bos_token_; }
  const std::string& chat_template() const override { return chat_template_; }

 private:
  bool IsKnown(int32_t id) const { return id >= 0 && id < vocab_size(); }

  const PreTokenizer pre_tokenizer_;
  const Bpe bpe_;
  const AddedTokens added_tokens_;
  const std::vector<std::string> token_bytes_;  // [ids]
  std::vector<bool> is_special_;                // [ids]
  int32_t bos_id_ = -1;
  int32_t eos_id_ = -1;
  int32_t pad_id_ = -1;
  bool add_bos_token_ = false;
  std::string chat_template_;
};

absl::Status BpeTokenizer::Configure(TokenizerConfigJson config,
                                     const std::optional<std::string>& first_token) {
  if (!config.bos_token) config.bos_token = first_token;
  for (const auto& [name, token, id] : {std::tuple{"bos_token", &config.bos_token, &bos_id_},
                                        std::tuple{"eos_token", &config.eos_token, &eos_id_},
                                        std::tuple{"pad_token", &config.pad_token, &pad_id_}}) {
    if (!*token) continue;
    const std::optional<int32_t> found = AddedTokenId(**token);
    if (!found) {
      return absl::InvalidArgumentError(absl::StrCat(
          name, ": \"", Shorten(**token), "\" is not among the added_tokens of tokenizer.json"));
    }
    *id = *found;
  }
  if (first_token && first_token != config.bos_token) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json's post_processor puts \"",
                                                   *first_token, "\" first, but bos_token is \"",
                                                   *config.bos_token, "\""));
  }
  add_bos_token_ = config.add_bos_token.value_or(first_token.has_value());
  if (add_bos_token_ && bos_id_ < 0) {
    return absl::InvalidArgumentError("add_bos_token is true, but there is no bos_token");
  }
  chat_template_ = std::move(config.chat_template);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::Encode(absl::string_view text,
                                                          const EncodeOptions& options) const {
  if (text.size() > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", text.size(), " bytes; at most 2 GiB can be tokenized"));
  }
  std::string repaired;
  if (!IsValidUtf8(text)) {
    repaired = ReplaceInvalidUtf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / kBytesPerTokenGuess + 2);
  if (options.add_bos && bos_id_ >= 0) ids.push_back(bos_id_);
  const absl::Status status = added_tokens_.Split(
      text, options.added_tokens, [&](absl::string_view piece, const AddedToken* token) {
        if (token != nullptr) {
          ids.push_back(token->id);
          return absl::OkStatus();
        }
        return pre_tokenizer_.Split(piece,
                                    [&](absl::string_view word) { bpe_.Encode(word, &ids); });
      });
  if (!status.ok()) return status;
  return ids;
}

// The file's text; empty if there is no such file.
absl::StatusOr<std::string> ReadOptionalFile(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kSmallFileBytesMax);
  if (absl::IsNotFound(text.status())) return std::string();
  return text;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Build(absl::string_view tokenizer_json,
                                                       TokenizerConfigJson config) {
  auto json = ParseTokenizerJson(tokenizer_json);
  if (!json.ok()) return In("tokenizer.json", json.status());
  auto pre_tokenizer = PreTokenizer::Create(json->pre_tokenizer);
  if (!pre_tokenizer.ok()) return In("tokenizer.json: pre_tokenizer", pre_tokenizer.status());
  auto bpe = Bpe::Create(std::move(json->bpe));
  if (!bpe.ok()) return In("tokenizer.json", bpe.status());
  auto tokenizer = std::make_unique<BpeTokenizer>(*std::move(pre_tokenizer), *std::move(bpe),
                                                  AddedTokens(std::move(json->added_tokens)),
                                                  std::move(json->token_bytes));
  const absl::Status status = tokenizer->Configure(std::move(config), json->first_token);
  if (!status.ok()) return In("tokenizer_config.json", status);
  return tokenizer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::FromJson(
    absl::string_view tokenizer_json, absl::string_view tokenizer_config_json) {
  auto config = ParseTokenizerConfigJson(tokenizer_config_json);
  if (!config.ok()) return In("tokenizer_config.json", config.status());
  return Build(tokenizer_json, *std::move(config));
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Load(const std::string& dir) {
  const auto json = ReadFile(dir + "/tokenizer.json", kTokenizerFileBytesMax);
  if (!json.ok()) return json.status();
  const auto config_json = ReadOptionalFile(dir + "/tokenizer_config.json");
  if (!config_json.ok()) return config_json.status();
  auto config = ParseTokenizerConfigJson(*config_json);
  if (!config.ok()) return In(dir + "/tokenizer_config.json", config.status());
  auto chat_template = ReadOptionalFile(dir + "/chat_template.jinja");
  if (!chat_template.ok()) return chat_template.status();
  if (!chat_template->empty()) config->chat_template = *std::move(chat_template);
  auto tokenizer = Build(*json, *std::move(config));
  if (!tokenizer.ok()) return In(dir, tokenizer.status());
  return tokenizer;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (skip_special && IsSpecial(id)) continue;
    const absl::string_view token = TokenBytes(id);
    bytes.append(token.data(), token.size());
  }
  return ReplaceInvalidUtf8(bytes);
}

}  // namespace sluice::model
