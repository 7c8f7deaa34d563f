// The safetensors file format: 8 bytes of header length (little endian), a JSON header, the data.
//   {"__metadata__": {…}, NAME: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, …}
// Source: huggingface/safetensors README, section Format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/dtype.h"

namespace sluice::model {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  size_t begin = 0;  // byte offsets in the file
  size_t end = 0;
};

// Reads the header of `file`, the whole file's bytes, and checks all of it: the entries, in order
// of their data, cover what follows the header exactly, without overlaps or holes, each as long as
// its shape and type say, and no name appears twice. The data itself is not touched. Any bytes are
// safe to pass. Errors (InvalidArgument) name `origin`, the tensor, what was found and wanted.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensors(absl::string_view file,
                                                               absl::string_view origin);

// A tensor's name as it may stand in a message: quoted, printable, of bounded length.
std::string QuoteName(absl::string_view name);

// "[7168, 2048]".
std::string ShapeString(const std::vector<int64_t>& shape);

}  // namespace sluice::model
