// KV transfer over UCX: the common cases over shared memory and TCP, and processes that die.
#include "services/transport/ucx.h"

#include <utility>

#include "services/transport/kv_transfer_cases.h"

namespace sluice::transport {
namespace {

class UcxTestNetwork final : public TestNetwork {
 public:
  explicit UcxTestNetwork(std::string transports) : transports_(std::move(transports)) {}
  std::unique_ptr<KvTransport> Join(const KvMemory& memory, uint64_t incarnation) override {
    auto transport =
        MakeUcxTransport({.memory = memory, .incarnation = incarnation, .transports = transports_});
    EXPECT_TRUE(transport.ok()) << transport.status();
    return *std::move(transport);
  }

 private:
  const std::string transports_;
};

TestNetworkMaker Over(std::string name, std::string transports) {
  return {std::move(name), [transports] { return std::make_unique<UcxTestNetwork>(transports); }};
}

INSTANTIATE_TEST_SUITE_P(Ucx, KvTransferTest,
                         testing::Values(Over("shared_memory", "posix,cma,self"),
                                         Over("tcp", "tcp,self")),
                         NetworkName);

}  // namespace
}  // namespace sluice::transport
