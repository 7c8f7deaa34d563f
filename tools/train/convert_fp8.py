"""Makes the FP8 twin of a bf16 checkpoint directory: e4m3 weights with one f32 scale per 128x128 block.

Why it exists: DeepSeek-V3 ships in this format, and an engine is tested best when the same model exists in both.
Quantised are the tensors that DeepSeek quantises: all projections of attention, dense MLPs, routed and shared experts.
Kept as they are: embeddings, head, norms, the router and the MTP layer's eh_proj.

    python3 convert_fp8.py DIR_BF16 DIR_FP8

Per block: scale = amax / 448, q = round_to_nearest_even_e4m3(w / scale); a block of zeros gets scale 1. The last block of
a row or column may be partial. `<name>_scale_inv` holds the scale, so that w = q * scale_inv.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK, E4M3_MAX = 128, 448.0
QUANTISED = re.compile(r"\.(q_a_proj|q_b_proj|q_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj|gate_proj|up_proj|down_proj)\.weight$")
COPIED = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] -> e4m3 [N, K] and f32 scales [ceil(N / 128), ceil(K / 128)]."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))  # [n, 128, k, 128]
    amax = blocks.abs().amax((1, 3))
    scale = torch.where(amax > 0, amax / E4M3_MAX, torch.ones_like(amax))
    q = (blocks / scale[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX).flatten(0, 1).flatten(1)
    return q[:rows, :columns].contiguous().to(torch.float8_e4m3fn), scale.contiguous()


def convert(source: Path, target: Path):
    target.mkdir(parents=True, exist_ok=True)
    out = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if QUANTISED.search(name):
            out[name], out[f"{name}_scale_inv"] = quantize(tensor)
        else:
            out[name] = tensor
    save_file(out, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in COPIED:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    convert(args.source, args.target)
    print(f"{args.target}: {sum(f.stat().st_size for f in args.target.iterdir())} bytes")
