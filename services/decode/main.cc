// sluice-decode: continues requests whose KV it gets from prefills; with role mixed it does all
// itself.

#include "services/instance/program.h"

int main(int argc, char** argv) {
  return sluice::instance::RunProgram(argc, argv, {"decode", "mixed"});
}
