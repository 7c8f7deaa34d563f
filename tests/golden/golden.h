// Reads the goldens of this folder. The names of their tensors are in README.md.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace sluice {

class Golden {
 public:
  // tests/golden/NAME.safetensors; the working directory is the root of the sources. Aborts, saying
  // why, when the file cannot be read.
  static Golden Load(const std::string& name);

  // The elements of a tensor; abort, saying why, when it is absent or of another type.
  absl::Span<const float> F32(const std::string& name) const;
  absl::Span<const int32_t> I32(const std::string& name) const;
  bool Has(const std::string& name) const { return tensors_.count(name) > 0; }

  // The generator's seed that the weights were made with.
  uint64_t seed() const { return static_cast<uint64_t>(I32("seed")[0]); }

 private:
  struct Tensor {
    std::vector<float> f32;
    std::vector<int32_t> i32;
  };
  const Tensor& Find(const std::string& name) const;

  std::string path_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace sluice
