// What a backend may do with the numbers it is given.
#pragma once

namespace sluice {

enum class Numerics {
  kExact,  // f32 throughout. On the CPU every result is bit-equal whatever the batch, thread count
           // or instruction set
  kFast,   // may round activations (CPU: to bf16; CUDA: to FP8 where the weights are FP8) and use
           // the widest matrix instructions there are
};

}  // namespace sluice
