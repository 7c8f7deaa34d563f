// The main() of sluice-prefill and sluice-decode.
//
// Health and admin verbs are there from the start, ready once the model is loaded and the loop
// runs. SIGTERM drains; while the model is still being loaded it ends the process at once. What
// hangs then, such as a step that never ends, ends the process with 1 some seconds after the drain.
// The exit status is an ExitCode of services/base/program.h.
#pragma once

#include <initializer_list>

#include "absl/strings/string_view.h"

namespace sluice::instance {

// `roles`: what may be asked of this program: prefill, decode, mixed.
int RunProgram(int argc, char** argv, std::initializer_list<absl::string_view> roles);

}  // namespace sluice::instance
