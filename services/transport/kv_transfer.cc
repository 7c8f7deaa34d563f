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
  return absl::OkStatus();
}

}  // namespace sluice::transport
