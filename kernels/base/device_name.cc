#include "kernels/base/device_name.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace sluice {

absl::StatusOr<DeviceName> ParseDeviceName(absl::string_view text) {
  if (text == "cpu") return DeviceName{};
  if (text == "cuda") return DeviceName{.cuda = true};
  absl::string_view number = text;
  DeviceName name{.cuda = true};
  if (absl::ConsumePrefix(&number, "cuda:") && absl::SimpleAtoi(number, &name.number) &&
      name.number >= 0) {
    return name;
  }
  return absl::InvalidArgumentError(absl::StrCat("is '", text, "', wanted cpu, cuda or cuda:N"));
}

}  // namespace sluice
