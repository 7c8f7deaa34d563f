"""Weights that anyone can make again from a seed: counter-based, the same in C++ and Python.

Element i of a tensor is a pure function of (seed, the tensor's checkpoint name, i), so any slice
of any tensor can be made alone. The C++ twin is services/model/random_weights.h; the two agree bit
for bit.
"""

import ml_dtypes
import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 22  # elements made at a time: bounds the memory for the temporaries
FP8_BLOCK = 128
FP8_MAX = np.float32(448)


def _mix(x):
    """splitmix64's finaliser, over an array of uint64."""
    with np.errstate(over="ignore"):
        z = x + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _fnv1a64(name):
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) % (1 << 64)
    return np.uint64(value)


def bits(seed, name, begin, end):
    """64 random bits for each of the elements [begin, end) of tensor `name`."""
    key = _mix(np.array([np.uint64(seed) ^ _fnv1a64(name)], dtype=np.uint64))
    with np.errstate(over="ignore"):
        return _mix(key + np.arange(begin, end, dtype=np.uint64) * _GOLDEN)


def normal(seed, name, shape, stddev, mean=0.0):
    """f32 tensor of nearly normal values: the sum of four uniform 16-bit numbers, scaled."""
    count = int(np.prod(shape))
    scale = np.float32(stddev / np.sqrt((2.0**32 - 1) / 3))
    out = np.empty(count, dtype=np.float32)
    for begin in range(0, count, _CHUNK):
        end = min(begin + _CHUNK, count)
        b = bits(seed, name, begin, end)
        total = np.full(end - begin, -131070, dtype=np.int64)
        for shift in (0, 16, 32, 48):
            total += ((b >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
        out[begin:end] = total.astype(np.float32) * scale
        if mean:
            out[begin:end] += np.float32(mean)
    return out.reshape(shape)


def stddev_and_mean(name, shape):
    """What a tensor of a checkpoint is drawn from, by its name."""
    if name.endswith("norm.weight"):
        return 0.1, 1.0
    if name.endswith("e_score_correction_bias"):
        return 0.01, 0.0
    if name.endswith("embed_tokens.weight"):
        return 1.0, 0.0
    return shape[-1] ** -0.5, 0.0


def checkpoint_tensor(seed, name, shape):
    """The f32 values of a checkpoint's tensor before they are rounded to how it is stored."""
    stddev, mean = stddev_and_mean(name, shape)
    return normal(seed, name, shape, stddev, mean)


def round_to_bf16(values):
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def quantise_fp8(values):
    """Codes (e4m3) and scales [ceil(N / 128), ceil(K / 128)] of a matrix.

    The last blocks may be partial.
    """
    rows, cols = values.shape
    blocks = (-(-rows // FP8_BLOCK), -(-cols // FP8_BLOCK))
    padded = np.zeros((blocks[0] * FP8_BLOCK, blocks[1] * FP8_BLOCK), dtype=np.float32)
    padded[:rows, :cols] = values
    tiles = padded.reshape(blocks[0], FP8_BLOCK, blocks[1], FP8_BLOCK)
    amax = np.abs(tiles).max(axis=(1, 3))
    scales = np.where(amax == 0, np.float32(1), amax / FP8_MAX).astype(np.float32)
    ratio = np.clip(tiles / scales[:, None, :, None], -FP8_MAX, FP8_MAX)
    codes = ratio.reshape(padded.shape)[:rows, :cols].astype(ml_dtypes.float8_e4m3fn)
    return codes, scales


def dequantise_fp8(codes, scales):
    rows, cols = codes.shape
    wide = np.repeat(np.repeat(scales, FP8_BLOCK, axis=0), FP8_BLOCK, axis=1)[:rows, :cols]
    return codes.astype(np.float32) * wide


_FP8_PROJECTIONS = (
    "q_proj q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj gate_proj up_proj down_proj"
).split()


def is_fp8(name):
    """Whether an FP8 checkpoint quantises this tensor."""
    return name.endswith(".weight") and name.split(".")[-2] in _FP8_PROJECTIONS
