// sluice-decode: continues requests whose KV it gets from prefills; with role mixed it does all
// itself.

#include "kernels/cpu/cpu_backend.h"
#include "services/instance/program.h"

int main(int argc, char** argv) {
  return sluice::instance::RunProgram(argc, argv, {"decode", "mixed"}, [](int threads, bool exact) {
    return sluice::MakeCpuBackend(
        {.threads = threads,
         .numerics = exact ? sluice::Numerics::kExact : sluice::Numerics::kFast});
  });
}
