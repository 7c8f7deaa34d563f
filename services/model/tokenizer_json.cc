#include "services/model/tokenizer_json.h"

#include <simdjson.h>

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/model/byte_level.h"
#include "services/model/utf8.h"

namespace sluice::model {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

// Sequences in sequences.
constexpr int kDepthMax = 8;

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

// A value as it may stand in an error message.
std::string Show(element value) { return Shorten(simdjson::minify(value)); }

absl::Status WrongType(absl::string_view field, element value, absl::string_view wanted) {
  return Wrong(field, absl::StrCat("expected ", wanted, ", found ", Show(value)));
}

absl::StatusOr<element> ParseJson(simdjson::dom::parser& parser, absl::string_view json) {
  element root;
  const auto error = parser.parse(json.data(), json.size()).get(root);
  if (error != simdjson::SUCCESS) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", simdjson::error_message(error)));
  }
  if (!root.is_object()) return absl::InvalidArgumentError("expected a JSON object");
  return root;
}

// The member `key`, or nothing if it is absent or null.
std::optional<element> Member(element parent, const char* key) {
  element value;
  if (parent.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
  return value;
}

absl::StatusOr<absl::string_view> GetString(element value, absl::string_view field) {
  std::string_view text;
  if (value.get(text) != simdjson::SUCCESS) return WrongType(field, value, "a string");
  return absl::string_view(text.data(), text.size());
}

absl::StatusOr<absl::string_view> StringMember(element parent, const char* key,
                                               absl::string_view field) {
  const std::optional<element> value = Member(parent, key);
  if (!value) return Wrong(field, absl::StrCat("\"", key, "\" is missing"));
  return GetString(*value, absl::StrCat(field, ".", key));
}

absl::StatusOr<bool> BoolMember(element parent, const char* key, bool otherwise,
                                absl::string_view field) {
  const std::optional<element> value = Member(parent, key);
  if (!value) return otherwise;
  bool result = false;
  if (value->get(result) != simdjson::SUCCESS) {
    return WrongType(absl::StrCat(field, ".", key), *value, "true or false");
  }
  return result;
}

absl::StatusOr<int32_t> GetId(element value, absl::string_view field) {
  int64_t id = 0;
  if (value.get(id) != simdjson::SUCCESS || id < 0 || id > TokenizerJson::kIdMax) {
    return WrongType(field, value, absl::StrCat("an id from 0 to ", TokenizerJson::kIdMax));
  }
  return static_cast<int32_t>(id);
}

absl::StatusOr<array> ArrayMember(element parent, const char* key, absl::string_view field) {
  const std::optional<element> value = Member(parent, key);
  array result;
  if (!value) return Wrong(field, absl::StrCat("\"", key, "\" is missing"));
  if (value->get(result) != simdjson::SUCCESS) {
    return WrongType(absl::StrCat(field, ".", key), *value, "a list");
  }
  return result;
}

// The step of GPT-2 that a ByteLevel pre-tokenizer with use_regex takes.
constexpr absl::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Reads the pre-tokenizer tree into steps; sees to it that ByteLevel comes last.
class PreTokenizerReader {
 public:
  explicit PreTokenizerReader(std::vector<PreTokenizer::Step>* steps) : steps_(*steps) {}

  absl::Status Read(element value, const std::string& field, int depth) {
    if (depth > kDepthMax) return Wrong(field, "is nested too deeply");
    const auto type = StringMember(value, "type", field);
    if (!type.ok()) return type.status();
    if (done_)
      return Wrong(field, absl::StrCat(Shorten(*type), " after ByteLevel is not supported"));
    if (*type == "Sequence") return ReadSequence(value, field, depth);
    if (*type == "Split") return ReadSplit(value, field);
    if (*type == "Digits") {
      const auto individual = BoolMember(value, "individual_digits", false, field);
      if (!individual.ok()) return individual.status();
      steps_.push_back(PreTokenizer::Digits{*individual});
      return absl::OkStatus();
    }
    if (*type == "ByteLevel") return ReadByteLevel(value, field);
    return Wrong(field,
                 absl::StrCat("type ", Shorten(*type),
                              " is not supported (only Sequence, Split, Digits, ByteLevel)"));
  }

  bool done() const { return done_; }

 private:
  absl::Status ReadSequence(element value, const std::string& field, int depth) {
    const auto parts = ArrayMember(value, "pretokenizers", field);
    if (!parts.ok()) return parts.status();
    int index = 0;
    for (const element part : *parts) {
      const absl::Status status =
          Read(part, absl::StrCat(field, ".pretokenizers[", index++, "]"), depth + 1);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status ReadSplit(element value, const std::string& field) {
    const auto behavior = StringMember(value, "behavior", field);
    if (!behavior.ok()) return behavior.status();
    if (*behavior != "Isolated") {
      return Wrong(field, absl::StrCat("behavior ", Shorten(*behavior),
                                       " is not supported (only Isolated)"));
    }
    const std::optional<element> pattern = Member(value, "pattern");
    if (!pattern) return Wrong(field, "\"pattern\" is missing");
    const bool is_regex = Member(*pattern, "Regex").has_value();
    const auto text =
        StringMember(*pattern, is_regex ? "Regex" : "String", absl::StrCat(field, ".pattern"));
    if (!text.ok()) return text.status();
    if (text->empty()) return Wrong(field, "an empty pattern");
    if (is_regex) {
      steps_.push_back(PreTokenizer::Regex{std::string(*text)});
    } else {
      steps_.push_back(PreTokenizer::Literal{std::string(*text)});
    }
    return absl::OkStatus();
  }

  absl::Status ReadByteLevel(element value, const std::string& field) {
    const auto add_prefix_space = BoolMember(value, "add_prefix_space", true, field);
    const auto use_regex = BoolMember(value, "use_regex", true, field);
    if (!add_prefix_space.ok()) return add_prefix_space.status();
    if (!use_regex.ok()) return use_regex.status();
    if (*add_prefix_space) return Wrong(field, "add_prefix_space true is not supported");
    if (*use_regex) steps_.push_back(PreTokenizer::Regex{std::string(kGpt2Pattern)});
    done_ = true;
    return absl::OkStatus();
  }

  std::vector<PreTokenizer::Step>& steps_;
  bool done_ = false;
};

absl::Status CheckNormalizer(element root) {
  const std::optional<element> normalizer = Member(root, "normalizer");
  if (!normalizer) return absl::OkStatus();
  const auto type = StringMember(*normalizer, "type", "normalizer");
  if (!type.ok()) return type.status();
  if (*type == "Sequence") {
    const auto parts = ArrayMember(*normalizer, "normalizers", "normalizer");
    if (!parts.ok()) return parts.status();
    if (parts->size() == 0) return absl::OkStatus();
  }
  return Wrong("normalizer", absl::StrCat("expected none, found ", Show(*normalizer)));
}

absl::Status CheckDecoder(element root) {
  const std::optional<element> decoder = Member(root, "decoder");
  if (!decoder) return Wrong("decoder", "is missing (only ByteLevel is supported)");
  const auto type = StringMember(*decoder, "type", "decoder");
  if (!type.ok()) return type.status();
  if (*type == "ByteLevel") return absl::OkStatus();
  return Wrong("decoder",
               absl::StrCat("type ", Shorten(*type), " is not supported (only ByteLevel)"));
}

// ByteLevel only touches offsets. TemplateProcessing may put one special token first.
absl::Status ReadPostProcessor(element value, const std::string& field, int depth,
                               TokenizerJson* out) {
  if (depth > kDepthMax) return Wrong(field, "is nested too deeply");
  const auto type = StringMember(value, "type", field);
  if (!type.ok()) return type.status();
  if (*type == "ByteLevel") return absl::OkStatus();
  if (*type == "Sequence") {
    const auto parts = ArrayMember(value, "processors", field);
    if (!parts.ok()) return parts.status();
    int index = 0;
    for (const element part : *parts) {
      const absl::Status status = ReadPostProcessor(
          part, absl::StrCat(field, ".processors[", index++, "]"), depth + 1, out);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  if (*type != "TemplateProcessing") {
    return Wrong(field, absl::StrCat("type ", Shorten(*type),
                                     " is not supported (only Sequence, ByteLevel, "
                                     "TemplateProcessing)"));
  }
  const auto parts = ArrayMember(value, "single", field);
  if (!parts.ok()) return parts.status();
  size_t index = 0;
  for (const element part : *parts) {
    const std::string part_field = absl::StrCat(field, ".single[", index++, "]");
    const bool is_last = index == parts->size();
    if (const auto special = Member(part, "SpecialToken"); special && index == 1 && !is_last) {
      const auto id = StringMember(*special, "id", part_field);
      if (!id.ok()) return id.status();
      out->first_token = std::string(*id);
    } else if (!Member(part, "Sequence") || !is_last) {
      return Wrong(part_field,
                   absl::StrCat("found ", Show(part),
                                "; only at most one token before the text is supported"));
    }
  }
  return absl::OkStatus();
}

// The options of the model that would change ids.
absl::Status CheckModelOptions(element model) {
  const auto type = StringMember(model, "type", "model");
  if (!type.ok()) return type.status();
  if (*type != "BPE") {
    return Wrong("model", absl::StrCat("type ", Shorten(*type), " is not supported (only BPE)"));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const std::optional<element> value = Member(model, key);
    if (!value) continue;
    const auto text = GetString(*value, absl::StrCat("model.", key));
    if (!text.ok()) return text.status();
    if (!text->empty()) return Wrong(absl::StrCat("model.", key), "only null is supported");
  }
  if (const std::optional<element> dropout = Member(model, "dropout")) {
    double rate = 0;
    if (dropout->get(rate) != simdjson::SUCCESS || rate != 0) {
      return WrongType("model.dropout", *dropout, "null");
    }
  }
  const auto byte_fallback = BoolMember(model, "byte_fallback", false, "model");
  if (!byte_fallback.ok()) return byte_fallback.status();
  if (*byte_fallback) return Wrong("model.byte_fallback", "true is not supported");
  return absl::OkStatus();
}

using Vocab = absl::flat_hash_map<absl::string_view, int32_t>;  // as the file writes tokens

absl::StatusOr<Vocab> ReadVocab(element model) {
  const std::optional<element> value = Member(model, "vocab");
  object members;
  if (!value || value->get(members) != simdjson::SUCCESS) {
    return Wrong("model.vocab", "expected an object");
  }
  Vocab vocab;
  absl::flat_hash_set<int32_t> ids;
  for (const auto member : members) {
    const absl::string_view token(member.key.data(), member.key.size());
    const std::string field = absl::StrCat("model.vocab[\"", Shorten(token), "\"]");
    const auto id = GetId(member.value, field);
    if (!id.ok()) return id.status();
    if (token.empty()) return Wrong(field, "an empty token");
    if (!vocab.emplace(token, *id).second) return Wrong(field, "the token is there twice");
    if (!ids.insert(*id).second) return Wrong(field, absl::StrCat("id ", *id, " is there twice"));
  }
  return vocab;
}

// A merge is written as "left right" or as ["left", "right"].
absl::StatusOr<std::pair<absl::string_view, absl::string_view>> SplitMerge(
    element value, const std::string& field) {
  if (value.is_string()) {
    const auto text = GetString(value, field);
    if (!text.ok()) return text.status();
    const size_t space = text->find(' ');
    if (space != absl::string_view::npos && text->find(' ', space + 1) == absl::string_view::npos) {
      return std::make_pair(text->substr(0, space), text->substr(space + 1));
    }
  } else if (array parts; value.get(parts) == simdjson::SUCCESS && parts.size() == 2) {
    const auto left = GetString(parts.at(0).value(), field);
    const auto right = GetString(parts.at(1).value(), field);
    if (left.ok() && right.ok()) return std::make_pair(*left, *right);
  }
  return WrongType(field, value, "two tokens");
}

absl::StatusOr<std::vector<Bpe::Merge>> ReadMerges(element model, const Vocab& vocab) {
  const auto values = ArrayMember(model, "merges", "model");
  if (!values.ok()) return values.status();
  std::vector<Bpe::Merge> merges;
  merges.reserve(values->size());
  std::string merged;
  for (const element value : *values) {
    const std::string field = absl::StrCat("model.merges[", merges.size(), "]");
    const auto pair = SplitMerge(value, field);
    if (!pair.ok()) return pair.status();
    merged.assign(pair->first.data(), pair->first.size());
    merged.append(pair->second.data(), pair->second.size());
    int32_t ids[3];
    const absl::string_view tokens[3] = {pair->first, pair->second, merged};
    for (int i = 0; i < 3; ++i) {
      const auto found = vocab.find(tokens[i]);
      if (found == vocab.end()) {
        return Wrong(field, absl::StrCat("\"", Shorten(tokens[i]), "\" is not in model.vocab"));
      }
      ids[i] = found->second;
    }
    merges.push_back({ids[0], ids[1], ids[2]});
  }
  return merges;
}

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(element root) {
  std::vector<AddedToken> tokens;
  if (!Member(root, "added_tokens")) return tokens;
  const auto values = ArrayMember(root, "added_tokens", "tokenizer.json");
  if (!values.ok()) return values.status();
  absl::flat_hash_set<absl::string_view> contents;
  for (const element value : *values) {
    const std::string field = absl::StrCat("added_tokens[", tokens.size(), "]");
    const std::optional<element> id_value = Member(value, "id");
    if (!id_value) return Wrong(field, "\"id\" is missing");
    const auto id = GetId(*id_value, absl::StrCat(field, ".id"));
    if (!id.ok()) return id.status();
    const auto content = StringMember(value, "content", field);
    if (!content.ok()) return content.status();
    if (content->empty()) return Wrong(field, "an empty token");
    if (!contents.insert(*content).second) {
      return Wrong(field, absl::StrCat("\"", Shorten(*content), "\" is there twice"));
    }
    AddedToken token{.id = *id, .content = std::string(*content)};
    for (const auto& [key, flag] :
         {std::pair{"single_word", &token.single_word}, std::pair{"lstrip", &token.lstrip},
          std::pair{"rstrip", &token.rstrip}, std::pair{"normalized", &token.normalized},
          std::pair{"special", &token.special}}) {
      const auto set = BoolMember(value, key, *flag, field);
      if (!set.ok()) return set.status();
      *flag = *set;
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

// Byte-level decoding of one token: its bytes, or its text if some character stands for no byte.
std::string DecodedBytes(absl::string_view token) {
  return ByteLevelToBytes(token).value_or(std::string(token));
}

// Fills out->token_bytes and out->bpe.token_bytes. An added token must have the id that the
// vocabulary gives it, or one that is free.
absl::Status PlaceTokens(const Vocab& vocab, TokenizerJson* out) {
  int32_t id_max = -1;
  for (const auto& [token, id] : vocab) id_max = std::max(id_max, id);
  out->bpe.token_bytes.resize(id_max + 1);
  for (const AddedToken& token : out->added_tokens) id_max = std::max(id_max, token.id);
  out->token_bytes.resize(id_max + 1);
  for (const auto& [token, id] : vocab) {
    out->bpe.token_bytes[id] = ByteLevelToBytes(token).value_or("");
    out->token_bytes[id] = DecodedBytes(token);
  }
  for (size_t i = 0; i < out->added_tokens.size(); ++i) {
    const AddedToken& token = out->added_tokens[i];
    const std::string field =
        absl::StrCat("added_tokens[", i, "] (\"", Shorten(token.content), "\")");
    const auto found = vocab.find(token.content);
    if (found != vocab.end() && found->second != token.id) {
      return Wrong(field, absl::StrCat("id ", token.id, ", but model.vocab says ", found->second));
    }
    std::string& bytes = out->token_bytes[token.id];
    if (found == vocab.end() && !bytes.empty()) {
      return Wrong(field, absl::StrCat("id ", token.id, " belongs to another token"));
    }
    bytes = DecodedBytes(token.content);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<std::string>> TokenMember(element config, const char* key) {
  const std::optional<element> value = Member(config, key);
  if (!value) return std::nullopt;
  const auto text =
      value->is_object() ? StringMember(*value, "content", key) : GetString(*value, key);
  if (!text.ok()) return text.status();
  return std::string(*text);
}

// One template, or a list of {name, template}, of which the one named "default" counts.
absl::StatusOr<std::string> ReadChatTemplate(element config) {
  const std::optional<element> value = Member(config, "chat_template");
  if (!value) return std::string();
  if (array list; value->get(list) == simdjson::SUCCESS) {
    for (const element entry : list) {
      const auto name = StringMember(entry, "name", "chat_template");
      if (!name.ok()) return name.status();
      if (*name != "default") continue;
      const auto text = StringMember(entry, "template", "chat_template");
      if (!text.ok()) return text.status();
      return std::string(*text);
    }
    return std::string();
  }
  const auto text = GetString(*value, "chat_template");
  if (!text.ok()) return text.status();
  return std::string(*text);
}

}  // namespace

absl::StatusOr<TokenizerJson> ParseTokenizerJson(absl::string_view json) {
  simdjson::dom::parser parser;
  const auto root = ParseJson(parser, json);
  if (!root.ok()) return root.status();
  TokenizerJson out;
  for (const absl::Status& status : {CheckNormalizer(*root), CheckDecoder(*root)}) {
    if (!status.ok()) return status;
  }
  const std::optional<element> pre_tokenizer = Member(*root, "pre_tokenizer");
  if (!pre_tokenizer) return Wrong("pre_tokenizer", "is missing");
  PreTokenizerReader reader(&out.pre_tokenizer);
  absl::Status status = reader.Read(*pre_tokenizer, "pre_tokenizer", 0);
  if (!status.ok()) return status;
  if (!reader.done()) return Wrong("pre_tokenizer", "does not end with ByteLevel");
  if (const std::optional<element> post_processor = Member(*root, "post_processor")) {
    status = ReadPostProcessor(*post_processor, "post_processor", 0, &out);
    if (!status.ok()) return status;
  }

  const std::optional<element> model = Member(*root, "model");
  if (!model || !model->is_object()) return Wrong("model", "is missing");
  status = CheckModelOptions(*model);
  if (!status.ok()) return status;
  const auto ignore_merges = BoolMember(*model, "ignore_merges", false, "model");
  if (!ignore_merges.ok()) return ignore_merges.status();
  out.bpe.ignore_merges = *ignore_merges;
  const auto vocab = ReadVocab(*model);
  if (!vocab.ok()) return vocab.status();
  auto merges = ReadMerges(*model, *vocab);
  if (!merges.ok()) return merges.status();
  out.bpe.merges = *std::move(merges);
  auto added_tokens = ReadAddedTokens(*root);
  if (!added_tokens.ok()) return added_tokens.status();
  out.added_tokens = *std::move(added_tokens);
  status = PlaceTokens(*vocab, &out);
  if (!status.ok()) return status;
  return out;
}

absl::StatusOr<TokenizerConfigJson> ParseTokenizerConfigJson(absl::string_view json) {
  TokenizerConfigJson out;
  if (json.empty()) return out;
  simdjson::dom::parser parser;
  const auto root = ParseJson(parser, json);
  if (!root.ok()) return root.status();
  for (const auto& [key, token] :
       {std::pair{"bos_token", &out.bos_token}, std::pair{"eos_token", &out.eos_token},
        std::pair{"pad_token", &out.pad_token}}) {
    auto text = TokenMember(*root, key);
    if (!text.ok()) return text.status();
    *token = *std::move(text);
  }
  if (Member(*root, "add_bos_token")) {
    const auto add = BoolMember(*root, "add_bos_token", false, "tokenizer_config.json");
    if (!add.ok()) return add.status();
    out.add_bos_token = *add;
  }
  auto chat_template = ReadChatTemplate(*root);
  if (!chat_template.ok()) return chat_template.status();
  out.chat_template = *std::move(chat_template);
  return out;
}

}  // namespace sluice::model
