#include "services/model/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/json.h"

namespace sluice::model {
namespace {

// DeepSeek-V3's index has 92 thousand tensors in 9 MB.
constexpr size_t kMaxIndexBytes = 256 << 20;

bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos && absl::EndsWith(name, ".safetensors");
}

// Tensor name to file name.
using WeightMap = std::map<std::string, std::string>;

absl::StatusOr<WeightMap> ReadIndex(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const nlohmann::json index, ReadJsonFile(path, kMaxIndexBytes));
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  };
  if (!index.is_object()) return error("is not a JSON object");
  const auto found = index.find("weight_map");
  if (found == index.end() || !found->is_object()) return error("has no object weight_map");
  if (found->empty()) return error("weight_map is empty");
  WeightMap map;
  for (const auto& [name, file] : found->items()) {
    if (!file.is_string()) {
      return error(absl::StrCat("weight_map of tensor ", QuoteName(name), " is ",
                                JsonForMessage(file), ", wanted a file name"));
    }
    if (!IsPlainFileName(file.get_ref<const std::string&>())) {
      return error(absl::StrCat("weight_map of tensor ", QuoteName(name), " is ",
                                JsonForMessage(file),
                                ", wanted a plain name ending in .safetensors"));
    }
    map[name] = file.get<std::string>();
  }
  return map;
}

// Index and files must tell the same story.
absl::Status CheckIndex(const std::string& path, const WeightMap& map,
                        const Checkpoint& checkpoint) {
  for (const auto& [name, file] : map) {
    if (checkpoint.Find(name) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": places tensor ", QuoteName(name),
                                                     " in ", file, ", which does not hold it"));
    }
  }
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    const std::string file = std::filesystem::path(tensor.file->path()).filename();
    const auto found = map.find(tensor.name);
    if (found == map.end() || found->second != file) {
      return absl::InvalidArgumentError(absl::StrCat(
          tensor.file->path(), ": holds tensor ", QuoteName(tensor.name), ", which ", path,
          found == map.end() ? " does not name" : " places in " + found->second));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& dir) {
  const std::string single = dir + "/model.safetensors";
  const std::string index = dir + "/model.safetensors.index.json";
  std::error_code ignored;
  const bool has_single = std::filesystem::exists(single, ignored);
  const bool has_index = std::filesystem::exists(index, ignored);
  Checkpoint checkpoint;
  if (!has_index) {
    if (!has_single) {
      return absl::NotFoundError(
          absl::StrCat(dir, ": holds neither model.safetensors nor model.safetensors.index.json"));
    }
    SLUICE_RETURN_IF_ERROR(checkpoint.AddFile(single));
    SLUICE_RETURN_IF_ERROR(checkpoint.SortTensors());
    return checkpoint;
  }
  SLUICE_ASSIGN_OR_RETURN(const WeightMap map, ReadIndex(index));
  std::set<std::string> names;
  for (const auto& [tensor, file] : map) names.insert(file);
  if (has_single && !names.contains("model.safetensors")) {
    return absl::InvalidArgumentError(
        absl::StrCat(single, ": lies beside ", index, ", which does not name it: remove one"));
  }
  for (const std::string& name : names) {
    SLUICE_RETURN_IF_ERROR(checkpoint.AddFile(dir + "/" + name));
  }
  SLUICE_RETURN_IF_ERROR(checkpoint.SortTensors());
  SLUICE_RETURN_IF_ERROR(CheckIndex(index, map, checkpoint));
  return checkpoint;
}

const StoredTensor* Checkpoint::Find(absl::string_view name) const {
  const auto found = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const StoredTensor& tensor, absl::string_view wanted) { return tensor.name < wanted; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

absl::Status Checkpoint::AddFile(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file, MappedFile::Open(path));
  SLUICE_ASSIGN_OR_RETURN(std::vector<SafetensorsEntry> entries,
                          ParseSafetensors(file->bytes(), path));
  for (SafetensorsEntry& entry : entries) {
    tensors_.push_back({.name = std::move(entry.name),
                        .dtype = entry.dtype,
                        .shape = std::move(entry.shape),
                        .data = file->bytes().data() + entry.begin,
                        .bytes = entry.end - entry.begin,
                        .file = file.get()});
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status Checkpoint::SortTensors() {
  std::sort(tensors_.begin(), tensors_.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  const auto twice = std::adjacent_find(
      tensors_.begin(), tensors_.end(),
      [](const StoredTensor& a, const StoredTensor& b) { return a.name == b.name; });
  if (twice == tensors_.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tensor ", QuoteName(twice->name),
                                                 " stands in both ", twice->file->path(), " and ",
                                                 (twice + 1)->file->path()));
}

}  // namespace sluice::model
