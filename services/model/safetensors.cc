#include "services/model/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status.h"

namespace sluice::model {
namespace {

using simdjson::dom::element;

// The limit of the reference implementation.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDepth = 8;
constexpr size_t kMaxRank = 8;

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

std::optional<DType> ParseDType(absl::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3, DType::kI32,
                            DType::kI64, DType::kU8}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return std::nullopt;
}

class HeaderParser {
 public:
  HeaderParser(absl::string_view file, absl::string_view origin) : file_(file), origin_(origin) {}

  absl::StatusOr<std::vector<SafetensorsEntry>> Parse() {
    SLUICE_ASSIGN_OR_RETURN(const absl::string_view header, Header());
    simdjson::dom::parser parser;
    if (parser.allocate(header.size(), kMaxDepth) != simdjson::SUCCESS) {
      return absl::ResourceExhaustedError(
          absl::StrCat(origin_, ": no memory for a header of ", header.size(), " bytes"));
    }
    element root;
    if (const auto error = parser.parse(header.data(), header.size()).get(root)) {
      return Error(absl::StrCat("header is not JSON as safetensors has it: ",
                                simdjson::error_message(error)));
    }
    simdjson::dom::object object;
    if (root.get_object().get(object)) return Error("header is not a JSON object");
    for (const auto& [key, value] : object) {
      const absl::string_view name = View(key);
      if (!names_.insert(std::string(name)).second) return TensorError(name, "appears twice");
      if (name == "__metadata__") {
        SLUICE_RETURN_IF_ERROR(CheckMetadata(value));
      } else {
        SLUICE_ASSIGN_OR_RETURN(SafetensorsEntry entry, ParseEntry(name, value));
        entries_.push_back(std::move(entry));
      }
    }
    SLUICE_RETURN_IF_ERROR(CheckCoverage());
    return std::move(entries_);
  }

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(origin_, ": ", what));
  }
  absl::Status TensorError(absl::string_view name, absl::string_view what) const {
    return Error(absl::StrCat("tensor ", QuoteName(name), " ", what));
  }

  absl::StatusOr<absl::string_view> Header() {
    uint64_t length = 0;
    if (file_.size() < sizeof(length)) {
      return Error(absl::StrCat("is ", file_.size(),
                                " bytes long, a safetensors file begins with 8 bytes of header "
                                "length"));
    }
    std::memcpy(&length, file_.data(), sizeof(length));
    if (length > kMaxHeaderBytes) {
      return Error(
          absl::StrCat("header length is ", length, ", at most ", kMaxHeaderBytes, " is allowed"));
    }
    if (length > file_.size() - sizeof(length)) {
      return Error(absl::StrCat("header length is ", length, ", the file has only ",
                                file_.size() - sizeof(length), " bytes after it"));
    }
    data_begin_ = sizeof(length) + length;
    return file_.substr(sizeof(length), length);
  }

  absl::Status CheckMetadata(const element& value) const {
    simdjson::dom::object metadata;
    if (value.get_object().get(metadata)) return Error("__metadata__ is not an object");
    for (const auto& field : metadata) {
      if (!field.value.is_string()) {
        return Error(
            absl::StrCat("__metadata__ field ", QuoteName(View(field.key)), " is not a string"));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<SafetensorsEntry> ParseEntry(absl::string_view name, const element& value) const {
    SafetensorsEntry entry;
    entry.name = std::string(name);
    simdjson::dom::object fields;
    if (value.get_object().get(fields)) return TensorError(name, "is not a JSON object");
    std::optional<std::vector<int64_t>> offsets;
    bool has_dtype = false;
    bool has_shape = false;
    for (const auto& [key, field] : fields) {
      if (key == "dtype" && !has_dtype) {
        std::string_view text;
        if (field.get_string().get(text)) return TensorError(name, "has a dtype that is no string");
        const std::optional<DType> dtype = ParseDType(View(text));
        if (!dtype) {
          return TensorError(name,
                             absl::StrCat("has dtype ", QuoteName(View(text)),
                                          ", wanted F32, BF16, F16, F8_E4M3, I32, I64 or U8"));
        }
        entry.dtype = *dtype;
        has_dtype = true;
      } else if (key == "shape" && !has_shape) {
        SLUICE_ASSIGN_OR_RETURN(entry.shape, ParseIntegers(name, "shape", field));
        has_shape = true;
      } else if (key == "data_offsets" && !offsets) {
        SLUICE_ASSIGN_OR_RETURN(offsets, ParseIntegers(name, "data_offsets", field));
      } else {
        return TensorError(name, absl::StrCat("has an unexpected field ", QuoteName(View(key))));
      }
    }
    if (!has_dtype || !has_shape || !offsets) {
      return TensorError(name, "lacks dtype, shape or data_offsets");
    }
    SLUICE_RETURN_IF_ERROR(SetRange(*offsets, entry));
    return entry;
  }

  absl::StatusOr<std::vector<int64_t>> ParseIntegers(absl::string_view name, absl::string_view what,
                                                     const element& value) const {
    simdjson::dom::array array;
    if (value.get_array().get(array)) {
      return TensorError(name, absl::StrCat("has a ", what, " that is no array"));
    }
    std::vector<int64_t> integers;
    for (const element& item : array) {
      int64_t integer = 0;
      if (item.get_int64().get(integer) || integer < 0) {
        return TensorError(name, absl::StrCat("has ", simdjson::minify(item), " in its ", what,
                                              ", wanted integers from 0 to 2^63 - 1"));
      }
      if (integers.size() == kMaxRank) {
        return TensorError(name,
                           absl::StrCat("has a ", what, " of more than ", kMaxRank, " numbers"));
      }
      integers.push_back(integer);
    }
    return integers;
  }

  absl::Status SetRange(const std::vector<int64_t>& offsets, SafetensorsEntry& entry) const {
    if (offsets.size() != 2 || offsets[0] > offsets[1]) {
      return TensorError(entry.name, absl::StrCat("has data_offsets ", ShapeString(offsets),
                                                  ", wanted [begin, end]"));
    }
    int64_t bytes = static_cast<int64_t>(DTypeBytes(entry.dtype));
    for (const int64_t dim : entry.shape) {
      if (__builtin_mul_overflow(bytes, dim, &bytes)) {
        return TensorError(entry.name, absl::StrCat("has shape ", ShapeString(entry.shape),
                                                    ", more bytes than can be counted"));
      }
    }
    if (offsets[1] - offsets[0] != bytes) {
      return TensorError(entry.name,
                         absl::StrCat("is ", DTypeName(entry.dtype), " ", ShapeString(entry.shape),
                                      ", which takes ", bytes, " bytes, but its data_offsets ",
                                      ShapeString(offsets), " hold ", offsets[1] - offsets[0]));
    }
    const size_t data_bytes = file_.size() - data_begin_;
    if (static_cast<uint64_t>(offsets[1]) > data_bytes) {
      return TensorError(entry.name,
                         absl::StrCat("has data_offsets ", ShapeString(offsets),
                                      ", the file has only ", data_bytes, " bytes of data"));
    }
    entry.begin = data_begin_ + static_cast<size_t>(offsets[0]);
    entry.end = data_begin_ + static_cast<size_t>(offsets[1]);
    return absl::OkStatus();
  }

  absl::Status CheckCoverage() {
    std::sort(entries_.begin(), entries_.end(),
              [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
              });
    size_t end = data_begin_;
    for (const SafetensorsEntry& entry : entries_) {
      if (entry.begin != end) {
        return TensorError(
            entry.name, absl::StrCat("begins at byte ", entry.begin - data_begin_, " of the data, ",
                                     entry.begin < end ? "inside"
                                                       : "after a hole "
                                                         "behind",
                                     " the tensor before it, which ends at ", end - data_begin_));
      }
      end = entry.end;
    }
    if (end == file_.size()) return absl::OkStatus();
    return Error(absl::StrCat("has ", file_.size() - data_begin_,
                              " bytes of data, its tensors take ", end - data_begin_));
  }

  const absl::string_view file_;
  const absl::string_view origin_;
  size_t data_begin_ = 0;
  absl::flat_hash_set<std::string> names_;
  std::vector<SafetensorsEntry> entries_;
};

}  // namespace

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensors(absl::string_view file,
                                                               absl::string_view origin) {
  return HeaderParser(file, origin).Parse();
}

std::string QuoteName(absl::string_view name) {
  constexpr size_t kLength = 160;
  const bool cut = name.size() > kLength;
  return absl::StrCat("\"", absl::CEscape(name.substr(0, kLength)), cut ? "..." : "", "\"");
}

std::string ShapeString(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace sluice::model
