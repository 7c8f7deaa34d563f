// The tensors of a checkpoint directory as Hugging Face writes them: model.safetensors alone, or
// several files named by model.safetensors.index.json.
//
// Threads: immutable; share freely. Tensors point into the mapped files, which live as long as any
// copy of their shared_ptr.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/base/mapped_file.h"
#include "services/model/safetensors.h"

namespace sluice::model {

struct StoredTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const char* data = nullptr;  // perhaps not aligned to the element size
  size_t bytes = 0;
  const MappedFile* file = nullptr;
};

class Checkpoint {
 public:
  // Opens and checks every file's header. NotFound when neither form is there or a file that the
  // index names is absent; InvalidArgument for damaged files, naming file, tensor, found, wanted.
  static absl::StatusOr<Checkpoint> Open(const std::string& dir);

  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // in order of name
  const StoredTensor* Find(absl::string_view name) const;                // null: absent
  const std::vector<std::shared_ptr<const MappedFile>>& files() const { return files_; }

 private:
  absl::Status AddFile(const std::string& path);
  absl::Status SortTensors();

  std::vector<StoredTensor> tensors_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
};

}  // namespace sluice::model
