#include "tests/golden/golden.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "services/base/mapped_file.h"
#include "services/model/safetensors.h"

namespace sluice {
namespace {

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "golden: %s\n", what.c_str());
  std::abort();
}

template <typename T>
std::vector<T> CopyElements(absl::string_view bytes) {
  std::vector<T> elements(bytes.size() / sizeof(T));
  std::memcpy(elements.data(), bytes.data(), elements.size() * sizeof(T));
  return elements;
}

}  // namespace

Golden Golden::Load(const std::string& name) {
  Golden golden;
  golden.path_ = "tests/golden/" + name + ".safetensors";
  const absl::StatusOr<std::shared_ptr<const MappedFile>> file = MappedFile::Open(golden.path_);
  if (!file.ok()) Die(file.status().ToString());
  const absl::string_view bytes = (*file)->bytes();
  const auto entries = model::ParseSafetensors(bytes, golden.path_);
  if (!entries.ok()) Die(entries.status().ToString());
  for (const model::SafetensorsEntry& entry : *entries) {
    const absl::string_view data = bytes.substr(entry.begin, entry.end - entry.begin);
    Tensor& tensor = golden.tensors_[entry.name];
    if (entry.dtype == DType::kF32) tensor.f32 = CopyElements<float>(data);
    if (entry.dtype == DType::kI32) tensor.i32 = CopyElements<int32_t>(data);
  }
  return golden;
}

const Golden::Tensor& Golden::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) Die(path_ + " has no tensor " + name);
  return found->second;
}

absl::Span<const float> Golden::F32(const std::string& name) const {
  const Tensor& tensor = Find(name);
  if (tensor.f32.empty()) Die(path_ + ": " + name + " holds no f32 elements");
  return tensor.f32;
}

absl::Span<const int32_t> Golden::I32(const std::string& name) const {
  const Tensor& tensor = Find(name);
  if (tensor.i32.empty()) Die(path_ + ": " + name + " holds no i32 elements");
  return tensor.i32;
}

}  // namespace sluice
