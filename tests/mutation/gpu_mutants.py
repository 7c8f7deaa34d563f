"""Barriers of the GPU kernels, each taken out: copies that must fail a numeric test.

Each text of `edits` must stand exactly once in `file`. `program` with the GoogleTest filter `tests`
is to notice. kernels/docs/sanitizers.md says what came of it.
"""

import dataclasses

TILES = "kernels/cuda/tile_linear.cuh"
DECODE = "kernels/cuda/mla_decode.cu"
PROMPT = "kernels/cuda/mla_prompt.cu"
GATE = "kernels/cuda/gate_linear.cu"


@dataclasses.dataclass(frozen=True)
class GpuMutant:
    name: str
    trap: str
    file: str
    edits: tuple
    program: str
    tests: str


def _tiles(name, trap, *edits, tests="*Fp8ProductsAreThose*:*EveryPlan*"):
    return GpuMutant(name, trap, TILES, edits, "cuda_linear_test", tests)


def _decode(name, trap, *edits):
    return GpuMutant(name, trap, DECODE, edits, "cuda_decode_test", "-*/two_each:*/far_apart")


def _prompt(name, trap, *edits):
    return GpuMutant(name, trap, PROMPT, edits, "cuda_prompt_test",
                     "*AnyNumberOfHeads:*ManySequences:*LongSequences")


MUTANTS = [
    # Matrix products. Consumers and the ring:
    _tiles("tiles_full", "a step's products do not wait for its operands (64 or 128 rows, FP8)",
           ("""        BarrierWait(full_at(stage), phase);
        issue(part, 0);
""", "        issue(part, 0);\n")),
    _tiles("tiles_full_256", "the same with 256 rows",
           ("""      // The other warpgroup's products are under way while this one's are added.
      for (int k = tile.begin; k < tile.end; ++k) {
        BarrierWait(full_at(stage), phase);
""", "      for (int k = tile.begin; k < tile.end; ++k) {\n")),
    _tiles("tiles_full_bf16", "the same in bf16",
           ("""      int last = -1;
      for (int k = tile.begin; k < tile.end; ++k) {
        BarrierWait(full_at(stage), phase);
""", """      int last = -1;
      for (int k = tile.begin; k < tile.end; ++k) {
"""), tests="*GroupsAndGatesOfBf16*"),
    _tiles("tiles_empty_weights", "weights are fetched into places in use",
           ("""          BarrierWait(empty_at(stage), phase ^ 1);
          const int at = stage;
          step_on();
          const bool two = kAtOnce == 2 && k + 1 < tile.end;
          if (two) BarrierWait(empty_at(stage), phase ^ 1);
""", """          const int at = stage;
          step_on();
          const bool two = kAtOnce == 2 && k + 1 < tile.end;
""")),
    _tiles("tiles_empty_x", "rows of x are fetched into places in use",
           ("""          BarrierWait(empty_at(stage), phase ^ 1);
          BarrierArriveExpect(full_at(stage), rows_fetched * kStepBytes);
""", "          BarrierArriveExpect(full_at(stage), rows_fetched * kStepBytes);\n")),
    _tiles("tiles_empty_x_scales", "scales of x are fetched into places in use",
           ("""          BarrierWait(empty_at(stage), phase ^ 1);
          BarrierArriveExpect(full_at(stage), bytes);
""", "          BarrierArriveExpect(full_at(stage), bytes);\n")),
    _tiles("tiles_empty_w_scales", "scales of weights are fetched into places in use",
           ("""          BarrierWait(empty_at(stage), phase ^ 1);
          CopyAsync4(""", "          CopyAsync4(")),
    GpuMutant("tiles_scales_read", "a stage is given back while its scales are still being read",
              TILES, ((" + ZeroOnceLoaded(zero, loaded...)", ""),), "cuda_tile_plans_test",
              "*EveryPlan*/decode_experts"),
    # What a warpgroup's threads tell each other, and blocks:
    _tiles("tiles_next", "threads read which tile is next before it is written",
           ("""    if (thread == 0) more[consumer] = mine.Next(&tile_of[consumer]);
    NamedBarrier(1 + consumer, 128);
""", "    if (thread == 0) more[consumer] = mine.Next(&tile_of[consumer]);\n")),
    _tiles("tiles_shares_there", "the first block of a cluster adds shares before they are there",
           ("""      ClusterSync();
      if (rank > 0) return;
""", "      if (rank > 0) return;\n"),
           ("    if constexpr (kColumnShares) ClusterSync();\n    return;\n", "    return;\n")),
    _tiles("tiles_split_read", "a share of a tile is read before it was announced",
           ("""          *flag = 0;
        }
        NamedBarrier(1 + consumer, 128);
""", "          *flag = 0;\n        }\n")),
    # Decode attention.
    _decode("decode_full", "scores do not wait for the page's tiles",
            ("      BarrierWait(barriers.Full(kHalf, tile), phase);\n", "")),
    _decode("decode_full_rope", "scores do not wait for the page's k_pe",
            ("    BarrierWait(barriers.Full(kHalf, 8), phase);\n", "")),
    _decode("decode_empty", "pages are fetched into places in use",
            ("      BarrierWait(barriers.Empty(page, section), phase);\n", "")),
    _decode("decode_queries_empty", "queries are fetched over those in use",
            ("      BarrierWait(barriers.QueriesEmpty(), queries_phase);\n", "")),
    _decode("decode_first_ready", "the second warpgroup does not wait for the first's probabilities",
            ("    NamedBarrier(kFirstReady, kConsumers);\n", "")),
    _decode("decode_second_ready", "the first warpgroup does not wait for the second's",
            ("    NamedBarrier(kSecondReady, kConsumers);\n", "")),
    _decode("decode_sums_ready", "sums are added before the other warpgroup has written its own",
            ("    NamedBarrierOfRoles(kSumsReady, kConsumers);\n", "")),
    # Prompt attention.
    _prompt("prompt_first_keys", "an item's first scores do not wait for the keys",
            ("""    BarrierWait(QueriesFull(base, 0), ItemPhase(0));
    WaitForSlots(base, slot, kKeySlots);
""", "    BarrierWait(QueriesFull(base, 0), ItemPhase(0));\n")),
    _prompt("prompt_tile_values", "outputs do not wait for a tile's values",
            ("      WaitForSlots(base, slot + kKeySlots, kValueSlots);\n", "")),
    _prompt("prompt_empty", "keys and values are fetched into slots in use",
            ("      BarrierWait(SlotEmpty(base, slot), SlotPhase(slot) ^ 1);\n", "")),
    _prompt("prompt_queries_full", "scores do not wait for the next queries",
            ("      BarrierWait(QueriesFull(base, item + 1), ItemPhase(item + 1));\n", "")),
    _prompt("prompt_item_full", "an item is read before it is written",
            ("  BarrierWait(ItemFull(base, item), ItemPhase(item));\n", "")),
    # No TMA and no wgmma, but racecheck is to see this one.
    GpuMutant("gate_chunk", "chunks are read before all threads' copies are there", GATE,
              (("    __syncthreads();  // the chunk is there, and the one before has been read\n", ""),),
              "cuda_gate_linear_test", "*"),
]


def texts():
    """(mutant, file, text) of every edit."""
    return [(m.name, m.file, text) for m in MUTANTS for text, _ in m.edits]
