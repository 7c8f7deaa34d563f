// sluice-prefill: computes prompts and sends their KV to decodes.

#include "services/instance/program.h"

int main(int argc, char** argv) { return sluice::instance::RunProgram(argc, argv, {"prefill"}); }
