#include "services/base/config_file.h"

#include <algorithm>
#include <exception>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "services/base/edit_distance.h"
#include "yaml-cpp/yaml.h"

namespace sluice {
namespace {

constexpr size_t kTextBytesMax = 1 << 20;
constexpr size_t kProblemsMax = 10;

constexpr struct {
  absl::string_view suffix;
  uint64_t bytes;
} kSizeUnits[] = {{"TiB", uint64_t{1} << 40},
                  {"GiB", uint64_t{1} << 30},
                  {"MiB", uint64_t{1} << 20},
                  {"KiB", uint64_t{1} << 10}};

std::string SizeText(uint64_t bytes) {
  for (const auto& unit : kSizeUnits) {
    if (bytes > 0 && bytes % unit.bytes == 0) {
      return absl::StrCat(bytes / unit.bytes, unit.suffix);
    }
  }
  return absl::StrCat(bytes);
}

std::optional<uint64_t> ParseSize(absl::string_view text) {
  uint64_t factor = 1;
  for (const auto& unit : kSizeUnits) {
    if (absl::ConsumeSuffix(&text, unit.suffix)) {
      factor = unit.bytes;
      break;
    }
  }
  uint64_t count = 0, bytes = 0;
  if (!absl::SimpleAtoi(text, &count) || __builtin_mul_overflow(count, factor, &bytes)) {
    return std::nullopt;
  }
  return bytes;
}

std::optional<Address> ParseAddress(absl::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return std::nullopt;
  absl::string_view host = text.substr(0, colon);
  const absl::string_view port_text = text.substr(colon + 1);
  int port = 0;
  if (!std::all_of(port_text.begin(), port_text.end(),
                   [](char c) { return c >= '0' && c <= '9'; }) ||
      !absl::SimpleAtoi(port_text, &port) || port > 65535) {
    return std::nullopt;
  }
  if (absl::ConsumePrefix(&host, "[")) {
    if (!absl::ConsumeSuffix(&host, "]")) return std::nullopt;
  } else if (absl::StrContains(host, ":")) {
    return std::nullopt;
  }
  if (host.empty()) return std::nullopt;
  for (const char c : host) {
    if (static_cast<unsigned char>(c) <= ' ' || absl::StrContains("/\\[]@\"'", c)) {
      return std::nullopt;
    }
  }
  return Address{std::string(host), port};
}

std::string ForMessage(absl::string_view text) {
  return absl::StrCat("'", text.substr(0, 60), text.size() > 60 ? "…" : "", "'");
}

class Problems {
 public:
  explicit Problems(absl::string_view path) : path_(path) {}

  void Add(const YAML::Mark& mark, absl::string_view key, absl::string_view what) {
    if (++count_ > kProblemsMax) return;
    const std::string line = mark.line >= 0 ? absl::StrCat(":", mark.line + 1) : "";
    texts_.push_back({absl::StrCat(path_, line, ": ", key, key.empty() ? "" : ": ", what), ""});
  }

  // `hint`: what to say of it unless another section has such a key.
  void AddUnknownKey(const YAML::Mark& mark, absl::string_view section, const std::string& key,
                     absl::string_view hint) {
    Add(mark, absl::StrCat(section, key.substr(0, 60)), absl::StrCat("no such key; ", hint));
    has_unknown_key_ = true;
    if (count_ > kProblemsMax) return;
    texts_.back().unknown_key = key;
    texts_.back().hint_bytes = hint.size();
  }

  // Items of lists are not told apart.
  void AddKnownKey(absl::string_view section, absl::string_view key) {
    sections_[std::string(key)].emplace(
        absl::StripSuffix(section.substr(0, section.find('[')), "."));
  }

  bool has_unknown_key() const { return has_unknown_key_; }

  absl::Status status() const {
    if (texts_.empty()) return absl::OkStatus();
    std::string text = absl::StrJoin(texts_, "\n", [this](std::string* out, const Told& told) {
      const auto known = sections_.find(told.unknown_key);
      if (known == sections_.end()) return out->append(told.text), void();
      const std::string sections = absl::StrJoin(known->second, ", ");
      absl::StrAppend(out, told.text.substr(0, told.text.size() - told.hint_bytes), "it stands ",
                      sections.empty() ? "at the top" : absl::StrCat("under ", sections));
    });
    if (count_ > kProblemsMax) absl::StrAppend(&text, "\nand ", count_ - kProblemsMax, " more");
    return absl::InvalidArgumentError(text);
  }

 private:
  struct Told {
    std::string text;
    std::string unknown_key;  // empty: it is another problem
    size_t hint_bytes = 0;    // at the end of the text
  };

  const std::string path_;
  std::vector<Told> texts_;
  size_t count_ = 0;
  bool has_unknown_key_ = false;
  std::map<std::string, std::set<std::string>> sections_;  // by key: where one is known
};

// One map of the file.
class Reader final : public ConfigVisitor {
 public:
  // `prefix`: "router." for what stands below router.
  Reader(YAML::Node node, std::string prefix, Problems* problems)
      : node_(std::move(node)), prefix_(std::move(prefix)), problems_(problems) {
    if (node_.IsMap()) {
      for (const auto& entry : node_) AddEntry(entry.first, entry.second);
    } else if (node_.IsDefined() && !node_.IsNull()) {
      problems_->Add(node_.Mark(), absl::StripSuffix(prefix_, "."),
                     "must be a map of keys and values");
    }
  }

  // After the description has run: what it did not ask for.
  void Finish() {
    for (const auto& [key, place] : places_) {
      if (known_.count(key) > 0) continue;
      const std::vector<std::string> known(known_.begin(), known_.end());
      const std::string nearest = NearestWord(key, known);
      problems_->AddUnknownKey(place.key_mark, prefix_, key,
                               nearest.empty()
                                   ? absl::StrCat("there are: ", absl::StrJoin(known, ", "))
                                   : absl::StrCat("did you mean ", nearest, "?"));
    }
  }

  void Text(absl::string_view key, std::string* value) override {
    if (const auto text = Scalar(key, "text")) *value = *text;
  }

  void Choice(absl::string_view key, std::string* value,
              std::initializer_list<absl::string_view> choices) override {
    const auto text = Scalar(key, absl::StrJoin(choices, " or "));
    if (!text.has_value()) return;
    if (std::find(choices.begin(), choices.end(), *text) == choices.end()) {
      const std::string nearest =
          NearestWord(*text, std::vector<std::string>(choices.begin(), choices.end()));
      Problem(key, absl::StrCat("is ", ForMessage(*text), "; wanted ", absl::StrJoin(choices, ", "),
                                nearest.empty() ? "" : absl::StrCat(" (", nearest, "?)")));
      return;
    }
    *value = *text;
  }

  void Bool(absl::string_view key, bool* value) override {
    const auto text = Scalar(key, "true or false");
    if (!text.has_value()) return;
    if (*text != "true" && *text != "false") {
      Problem(key, absl::StrCat("is ", ForMessage(*text), "; wanted true or false"));
      return;
    }
    *value = *text == "true";
  }

  void Number(absl::string_view key, int64_t* value, int64_t min, int64_t max) override {
    const std::string range = absl::StrCat("a whole number, ", min, " to ", max);
    const auto text = Scalar(key, range);
    if (!text.has_value()) return;
    int64_t number = 0;
    if (!absl::SimpleAtoi(*text, &number) || number < min || number > max) {
      Problem(key, absl::StrCat("is ", ForMessage(*text), "; wanted ", range));
      return;
    }
    *value = number;
  }

  void Size(absl::string_view key, uint64_t* value, uint64_t min, uint64_t max) override {
    const std::string range =
        absl::StrCat("a size like 512MiB, ", SizeText(min), " to ", SizeText(max));
    const auto text = Scalar(key, range);
    if (!text.has_value()) return;
    const std::optional<uint64_t> bytes = ParseSize(*text);
    if (!bytes.has_value() || *bytes < min || *bytes > max) {
      Problem(key, absl::StrCat("is ", ForMessage(*text), "; wanted ", range));
      return;
    }
    *value = *bytes;
  }

  void Duration(absl::string_view key, absl::Duration* value, absl::Duration min,
                absl::Duration max) override {
    const std::string range =
        absl::StrCat("a duration like 250ms or 10s, ", absl::FormatDuration(min), " to ",
                     absl::FormatDuration(max));
    const auto text = Scalar(key, range);
    if (!text.has_value()) return;
    absl::Duration duration;
    if (!absl::ParseDuration(*text, &duration) || duration < min || duration > max) {
      Problem(key, absl::StrCat("is ", ForMessage(*text), "; wanted ", range));
      return;
    }
    *value = duration;
  }

  void HostPort(absl::string_view key, Address* value) override {
    constexpr absl::string_view kWanted = "HOST:PORT, the port 0 to 65535";
    const auto text = Scalar(key, kWanted);
    if (!text.has_value()) return;
    std::optional<Address> address = ParseAddress(*text);
    if (!address.has_value()) {
      Problem(key, absl::StrCat("is ", ForMessage(*text), "; wanted ", kWanted));
      return;
    }
    *value = *std::move(address);
  }

  void Section(absl::string_view key, absl::FunctionRef<void(ConfigVisitor&)> describe) override {
    const auto place = Find(key);
    Reader below(place != places_.end() ? place->second.value : YAML::Node(),
                 absl::StrCat(prefix_, key, "."), problems_);
    describe(below);
    below.Finish();
  }

  void Problem(absl::string_view key, absl::string_view what) override {
    const auto place = places_.find(std::string(key));
    problems_->Add(place != places_.end() ? place->second.key_mark : node_.Mark(),
                   absl::StrCat(prefix_, key), what);
  }

  bool KnowsAllKeys() const override {
    return !problems_->has_unknown_key() &&
           std::all_of(places_.begin(), places_.end(),
                       [&](const auto& place) { return known_.count(place.first) > 0; });
  }

 private:
  struct Place {
    YAML::Mark key_mark;
    YAML::Node value;
  };

  void AddEntry(const YAML::Node& key, const YAML::Node& value) {
    if (!key.IsScalar()) {
      problems_->Add(key.Mark(), absl::StripSuffix(prefix_, "."), "has a key that is not a word");
    } else if (!places_.emplace(key.Scalar(), Place{key.Mark(), value}).second) {
      problems_->Add(key.Mark(), absl::StrCat(prefix_, key.Scalar().substr(0, 60)),
                     "stands here for the second time");
    }
  }

  std::map<std::string, Place>::iterator Find(absl::string_view key) {
    if (known_.emplace(key).second) problems_->AddKnownKey(prefix_, key);
    return places_.find(std::string(key));
  }

  bool Wanted(absl::string_view key, bool) override { return Find(key) != places_.end(); }

  std::optional<std::string> Scalar(absl::string_view key, absl::string_view wanted) {
    const auto place = Find(key);
    if (place == places_.end()) return std::nullopt;
    if (!place->second.value.IsScalar()) {
      const YAML::Node& value = place->second.value;
      Problem(key, absl::StrCat("is ",
                                value.IsNull()  ? "empty"
                                : value.IsMap() ? "a map"
                                                : "a list",
                                "; wanted ", wanted));
      return std::nullopt;
    }
    return place->second.value.Scalar();
  }

  std::optional<size_t> ListSize(absl::string_view key, size_t) override {
    const auto place = Find(key);
    if (place == places_.end()) return std::nullopt;
    const YAML::Node& value = place->second.value;
    if (value.IsNull()) return 0;
    if (!value.IsSequence()) {
      Problem(key, "must be a list");
      return 0;
    }
    return value.size();
  }

  void ListItem(absl::string_view key, size_t index,
                absl::FunctionRef<void(ConfigVisitor&)> describe) override {
    const auto place = Find(key);
    if (place == places_.end()) return;
    const YAML::Node list = place->second.value;
    Reader below(list[index], absl::StrCat(prefix_, key, "[", index, "]."), problems_);
    describe(below);
    below.Finish();
  }

  const YAML::Node node_;
  const std::string prefix_;
  Problems* const problems_;
  std::map<std::string, Place> places_;
  std::set<std::string> known_;
};

class Writer final : public ConfigVisitor {
 public:
  Writer() { out_ << YAML::BeginMap; }
  std::string Take() {
    out_ << YAML::EndMap;
    return std::string(out_.c_str(), out_.size()) + "\n";
  }

  void Text(absl::string_view key, std::string* value) override {
    Key(key) << YAML::DoubleQuoted << *value;
  }
  void Choice(absl::string_view key, std::string* value,
              std::initializer_list<absl::string_view>) override {
    Key(key) << *value;
  }
  void Bool(absl::string_view key, bool* value) override { Key(key) << *value; }
  void Number(absl::string_view key, int64_t* value, int64_t, int64_t) override {
    Key(key) << *value;
  }
  void Size(absl::string_view key, uint64_t* value, uint64_t, uint64_t) override {
    Key(key) << SizeText(*value);
  }
  void Duration(absl::string_view key, absl::Duration* value, absl::Duration,
                absl::Duration) override {
    Key(key) << absl::FormatDuration(*value);
  }
  void HostPort(absl::string_view key, Address* value) override {
    Key(key) << YAML::DoubleQuoted << value->ToString();
  }
  void Section(absl::string_view key, absl::FunctionRef<void(ConfigVisitor&)> describe) override {
    Key(key) << YAML::BeginMap;
    describe(*this);
    out_ << YAML::EndMap;
  }
  void Problem(absl::string_view, absl::string_view) override {}
  bool KnowsAllKeys() const override { return true; }

 private:
  YAML::Emitter& Key(absl::string_view key) {
    out_ << YAML::Key << std::string(key) << YAML::Value;
    return out_;
  }
  bool Wanted(absl::string_view, bool has_value) override { return has_value; }
  std::optional<size_t> ListSize(absl::string_view key, size_t size) override {
    list_left_ = size;
    Key(key) << YAML::BeginSeq;
    if (size == 0) out_ << YAML::EndSeq;
    return std::nullopt;
  }
  void ListItem(absl::string_view, size_t,
                absl::FunctionRef<void(ConfigVisitor&)> describe) override {
    out_ << YAML::BeginMap;
    describe(*this);
    out_ << YAML::EndMap;
    if (--list_left_ == 0) out_ << YAML::EndSeq;
  }

  YAML::Emitter out_;
  size_t list_left_ = 0;  // lists do not stand in lists
};

// On which line, from 0, something stands behind the first document's end. yaml-cpp, asked for all
// documents, finds no end of them in some texts.
std::optional<int> SecondDocument(absl::string_view text) {
  int number = 0;
  bool begun = false, ended = false;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const absl::string_view mark = line.substr(0, 3);
    if ((mark == "---" || mark == "...") &&
        (line.size() == 3 || absl::ascii_isspace(static_cast<unsigned char>(line[3])))) {
      ended = ended || begun;
      begun = begun || mark == "---";
      line.remove_prefix(3);
    }
    line = absl::StripLeadingAsciiWhitespace(line);
    if (!line.empty() && line[0] != '#' && line[0] != '%') {
      if (ended) return number;
      begun = true;
    }
    ++number;
  }
  return std::nullopt;
}

}  // namespace

std::string Address::ToString() const {
  return absl::StrContains(host, ":") ? absl::StrCat("[", host, "]:", port)
                                      : absl::StrCat(host, ":", port);
}

absl::Status ReadConfig(absl::string_view text, absl::string_view path,
                        absl::FunctionRef<void(ConfigVisitor&)> describe) {
  if (text.size() > kTextBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": has ", text.size(), " bytes; a cluster file has at most ", kTextBytesMax));
  }
  Problems problems(path);
  try {
    Reader reader(YAML::Load(std::string(text)), "", &problems);
    if (const std::optional<int> line = SecondDocument(text)) {
      YAML::Mark mark;
      mark.line = *line;
      problems.Add(mark, "",
                   "a further YAML document begins here; all keys must stand in the first");
    }
    describe(reader);
    reader.Finish();
  } catch (const YAML::Exception& error) {
    problems.Add(error.mark, "", absl::StrCat("is not YAML: ", error.msg));
  }
  return problems.status();
}

std::string WriteConfig(absl::FunctionRef<void(ConfigVisitor&)> describe) {
  Writer writer;
  describe(writer);
  return writer.Take();
}

}  // namespace sluice
