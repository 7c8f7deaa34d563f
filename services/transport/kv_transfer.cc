#include "services/transport/kv_transfer.h"

#include "absl/strings/str_cat.h"

namespace sluice::transport {

absl::Status CheckMemory(const KvMemory& memory) {
  const KvLayout& layout = memory.layout;
  const struct {
    const char* name;
    int64_t value;
  } fields[] = {{"layers", layout.layers},
                {"pages", layout.pages},
                {"page_rows", layout.page_rows},
                {"row_bytes", layout.row_bytes}};
  for (const auto& field : fields) {
    if (field.value <= 0 || field.value > INT32_MAX) {
      return absl::InvalidArgumentError(absl::StrCat("KV layout: ", field.name, " is ", field.value,
                                                     ", wanted 1 to ", INT32_MAX));
    }
  }
  if (static_cast<int64_t>(memory.layers.size()) != layout.layers) {
    return absl::InvalidArgumentError(absl::StrCat("KV memory has addresses of ",
                                                   memory.layers.size(), " layers, its layout has ",
                                                   layout.layers));
  }
  const int64_t layer_bytes = layout.pages * layout.page_bytes();
  for (int64_t layer = 0; memory.handle != nullptr && layer < layout.layers; ++layer) {
    if (memory.layers[layer] == memory.layers[0] + layer * layer_bytes) continue;
    return absl::InvalidArgumentError(absl::StrCat("KV memory that others may map: layer ", layer,
                                                   " does not lie ", layer * layer_bytes,
                                                   " bytes behind layer 0"));
  }
  return absl::OkStatus();
}

}  // namespace sluice::transport
