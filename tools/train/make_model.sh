#!/usr/bin/env bash
# Makes both checkpoint directories from nothing: tokenizer, evaluation set, training, FP8 twin, measurements.
# Why it exists: the shipped model is the output of one command.
#   tools/train/make_model.sh OUT_DIR SECONDS [further arguments of train.py]
# Needs one large GPU (bf16), 14 free cores, and PyTorch, tokenizers, safetensors, transformers.
set -euo pipefail
out=$1 seconds=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
bf16=$out/sluice-tiny fp8=$out/sluice-tiny-fp8
export PYTHONUNBUFFERED=1
mkdir -p "$bf16"
python3 "$here/train_tokenizer.py" --out "$bf16"
python3 "$here/make_eval_set.py" --out "$bf16/eval.jsonl"
python3 "$here/train.py" --tokenizer "$bf16" --out "$bf16" --seconds "$seconds" "$@"
python3 "$here/train_draft.py" "$bf16"
python3 "$here/convert_fp8.py" "$bf16" "$fp8"
python3 "$here/evaluate.py" "$bf16" --fp8 "$fp8" --eval "$bf16/eval.jsonl" --out "$bf16/training_report.json"
python3 "$here/check_tokenizer.py" "$bf16"
python3 "$here/check_against_transformers.py" "$bf16" 2>/dev/null
