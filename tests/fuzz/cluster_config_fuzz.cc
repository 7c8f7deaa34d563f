// Any bytes as a cluster file. What is accepted must be within the limits that programs rely on,
// and must say the same when it is written out and read again.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>

#include "services/base/cluster_config.h"

namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = sluice::ParseClusterConfig(text, "/etc/sluice/cluster.yaml");
  if (!config.ok()) {
    Check(config.status().message().size() < 20000);
    return 0;
  }
  Check(!config->model.dir.empty() && config->model.dir[0] == '/');
  Check(config->mixed.count > 0 || (config->prefill.count > 0 && config->decode.count > 0));
  std::set<std::string> names;
  for (const sluice::ProcessConfig& process : sluice::Processes(*config)) {
    Check(names.insert(process.name).second);
    for (const auto& address :
         {process.http, process.grpc, process.attach, process.admin, process.metrics}) {
      Check(!address.has_value() || (address->port >= 0 && address->port <= 65535));
    }
  }
  const std::string yaml = sluice::ToYaml(*config);
  const auto again = sluice::ParseClusterConfig(yaml, "again.yaml");
  Check(again.ok());
  Check(sluice::ToYaml(*again) == yaml);
  return 0;
}
