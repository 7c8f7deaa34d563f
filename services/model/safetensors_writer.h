// Writes one safetensors file piece by piece, in any order and from several threads, so that a
// tensor never has to be in memory as a whole.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/model/safetensors.h"

namespace sluice::model {

class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    DType dtype = DType::kF32;
    std::vector<int64_t> shape;
    size_t bytes() const;
  };

  // The data lies in the order of `tensors`; order them by falling element size and each is
  // aligned to its own. Writes to PATH.partial until Finish. Unavailable, naming the path, when the
  // file cannot be written.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, const std::vector<Tensor>& tensors);

  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  ~SafetensorsWriter();

  // `size` bytes of tensor `index`, from its byte `offset` on. Any thread.
  absl::Status Write(size_t index, size_t offset, const void* data, size_t size);

  // Puts the file in its place. What was never written is zero.
  absl::Status Finish();

 private:
  SafetensorsWriter(std::string path, int fd, std::vector<size_t> begins)
      : path_(std::move(path)), fd_(fd), begins_(std::move(begins)) {}

  const std::string path_;
  int fd_;
  const std::vector<size_t> begins_;  // in the file
};

}  // namespace sluice::model
