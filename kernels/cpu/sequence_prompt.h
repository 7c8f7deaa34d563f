// One chunk of MlaPromptParams, apart from the others: what the tasks of a prompt work on.
#pragma once

#include <cstdint>

#include "kernels/ops/attention.h"

namespace sluice {

struct SequencePrompt {
  MlaDims dims;
  TensorView q;  // the chunk's rows alone; so is `out`
  WeightView kv_b;
  TensorView cache;
  TensorView pages;  // i32 [pages_per_seq_max]: the page_table row of this sequence
  int64_t first_position = 0;
  float scale = 1.0f;
  TensorView out;
};

}  // namespace sluice
