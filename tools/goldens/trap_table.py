"""How far each known mistake moves the logits of the goldens: the table of tests/golden/README.md.

    python tools/goldens/trap_table.py

Each cell is the largest change of any logit of the golden's 65-token prompt (all positions),
divided by the largest logit. An engine is accepted within 1e-4, so a mistake with a cell well above
that cannot pass. A dash: the geometry has nothing to get wrong there.
"""

import checkpoint
import make_goldens
import numpy as np
import reference
from safetensors import safe_open

COLUMNS = ["v3_grouped", "v3_ungrouped_noqlora", "v2_softmax", "v2_grouped"]


class Golden:
    def __init__(self, name):
        self.config = checkpoint.load_config(name)
        path = checkpoint.CONFIGS.parent / f"{name}.safetensors"
        with safe_open(path, "np") as file:
            self.seed = int(file.get_tensor("seed")[0])
            self.ids = file.get_tensor(f"prompt.{make_goldens.FULL_LENGTH}.ids")
            self.logits = file.get_tensor(f"prompt.{make_goldens.FULL_LENGTH}.all_logits")
        self.weights = checkpoint.make_weights(self.config, self.seed)

    def shift(self, trap, weights=None):
        forward = reference.Forward(self.config, weights or self.weights, self.ids, trap)
        return make_goldens.relative_difference(forward.logits, self.logits)


def main():
    goldens = {name: Golden(name) for name in COLUMNS}
    print("| mistake | " + " | ".join(f"`{name}`" for name in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    rows = {None: ("none: the float64 reference", lambda config: True), **reference.TRAPS}
    for trap, (what, applies) in rows.items():
        cells = [f"{g.shift(trap):.0e}" if applies(g.config) else "-" for g in goldens.values()]
        label = f"`{trap}`: {what}" if trap else what
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
    fp8 = Golden("v3_grouped_fp8")
    unscaled = checkpoint.make_weights(fp8.config, fp8.seed, ignore_partial_blocks=True)
    bf16 = checkpoint.make_weights(goldens["v3_grouped"].config, fp8.seed)
    print(f"\nv3_grouped_fp8: none {fp8.shift(None):.0e}; partial scale blocks ignored "
          f"{fp8.shift(None, unscaled):.0e}; bf16 weights instead {fp8.shift(None, bf16):.0e}")


if __name__ == "__main__":
    np.seterr(over="ignore")
    main()
