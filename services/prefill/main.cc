// sluice-prefill: computes prompts and sends their KV to decodes.

#include "kernels/cpu/cpu_backend.h"
#include "services/instance/program.h"

int main(int argc, char** argv) {
  return sluice::instance::RunProgram(argc, argv, {"prefill"}, [](int threads, bool exact) {
    return sluice::MakeCpuBackend(
        {.threads = threads,
         .numerics = exact ? sluice::Numerics::kExact : sluice::Numerics::kFast});
  });
}
