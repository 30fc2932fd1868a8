"""The operations and the bytes of an edit, counted from the published dimensions of the networks. No torch here.

An operation is a multiplication or an addition, so a weight that meets a token takes two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qwen_edit.svdq.modules import SVDQ_MODULES

LANGUAGE: Mapping[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
}
VISION: Mapping[str, Any] = {
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
}
"""Qwen2.5-VL-7B, by the numbers of its config.json."""

VAE: Mapping[str, Any] = {"base_dim": 96, "z_dim": 16, "dim_mult": (1, 2, 4, 4), "num_res_blocks": 2}
"""The published VAE: what `diffusers.AutoencoderKLQwenImage` takes left out."""

PICTURE_TOKENS = 4096
"""Of 1024 × 1024 pixels: a token holds 16 × 16. The noise has as many, and so has the picture beside it."""

TEXT_TOKENS = 1395
"""Of a short prompt with its template, 1,369 of them a picture of 1036 × 1036 pixels: one for 28 × 28."""

PATCHES = 4 * 1369
"""What the vision tower sees of that picture: squares of 14 × 14 pixels."""

ELEMENT = 2
"""Bytes of a value in bfloat16."""


@dataclass(frozen=True)
class Shape:
    """What a transformer pass is counted from: layers, width, and tokens of both streams together."""

    layers: int
    width: int
    tokens: int


def shape_of(config: Mapping[str, Any], tokens: float) -> Shape:
    """The shape of a pass of so many tokens through a transformer of this configuration."""
    return Shape(config["num_layers"], config["num_attention_heads"] * config["attention_head_dim"], int(tokens))


def linear_flops(shape: Shape) -> int:
    """Of the linear layers of the blocks: 12 d² weights of queries, keys, values, output and MLP meet each token.

    The layers outside of the blocks are under 0.1 %.
    """
    return 24 * shape.width**2 * shape.tokens * shape.layers


def attention_flops(shape: Shape) -> int:
    """Of the attention: n² products of queries and keys, and n² of weights and values, of d each."""
    return 4 * shape.tokens**2 * shape.width * shape.layers


def low_rank_flops(shape: Shape, rank: int) -> int:
    """Of the low-rank branch beside the 4-bit weights: to `rank` directions and back, for each layer of the file.

    A token passes the layers of one stream, which are half of the file's.
    """
    sides = sum(inputs + outputs for inputs, outputs in SVDQ_MODULES.values()) // 2
    return 2 * rank * sides * shape.width * shape.tokens * shape.layers


STOCK: Mapping[str, float] = {
    "RMSNorm of queries and keys": 2 * 17,
    "rotation of queries and keys": 2 * 10,
    "GELU": 8,
    "modulation": 2 * 4,
    "gates": 2 * 5,
    "LayerNorm": 2 * 2,
    "concatenation": 3 * 2,
}
"""How often an eager block moves one activation of [tokens, width] in bfloat16, read or written, beside its products.

RMSNorm, by diffusers' `normalization.py`: to float32 (1 + 2), square (2 + 2), mean (2), times the root (1 + 2), to
bfloat16 (2 + 1), times the weight (1 + 1). The rotation: to float32 (1 + 2), the complex product (2 + 2), back (2 + 1).
GELU on four widths. Modulation: times the scale (1 + 1), plus the shift (1 + 1). A gate: times it (1 + 1), plus the
residual (2 + 1). LayerNorm and concatenation read once and write once.
"""

COMPILED: Mapping[str, float] = {
    "RMSNorm, rotation and concatenation in one": 2 * 2,
    "concatenation of the values": 2,
    "GELU": 8,
    "LayerNorm and modulation in one": 2 * 2,
    "gates": 2 * 3,
}
"""The same where a compiler joins what is done value by value. It cannot join a GELU with the product before it."""

BLOCK: Mapping[str, float] = {
    "norm, rotation and concatenation in one": 2 * 2,
    "concatenation of the values": 2,
    "GELU": 8,
    "LayerNorm and modulation in one": 2 * 2,
    "gates": 2 * 3,
}
"""The same of the worker's own block with Triton's kernels, as much as `COMPILED`; `bench.gpu.traffic` counts 24.2."""

BLOCK_OF_TORCH: Mapping[str, float] = {**BLOCK, "norm, rotation and concatenation in one": 20.8}
"""The same with PyTorch's operations: the norm with a copy of its input (4 each), and the rotation; 40.8 in all."""

FUSED_PRODUCT = ("RMSNorm of queries and keys", "rotation of queries and keys")
"""What the engine can do at the end of the product that makes queries and keys, without memory between."""

INPUTS = 3 + 4
"""Widths of a block's inputs to fp8 products: queries with keys and values, output, MLP, and the MLP's four inside."""

QUANTIZED_EAGER, QUANTIZED_COMPILED = 6.5, 1.5
"""How often each of them moves to become fp8. Eager: the largest value (1), the quotient in float32 (1 + 2), its
rounding (2 + ½). Compiled: it is read once and written in half the bytes."""


def moved_bytes(shape: Shape, moves: float) -> float:
    """Bytes that the blocks move in a pass, where each moves an activation so often."""
    return moves * shape.tokens * shape.width * ELEMENT * shape.layers


def text_encoder_flops(tokens: int, patches: int) -> int:
    """Of the vision tower over the patches and of the language model over the tokens, without the small attention."""
    width, inner = LANGUAGE["hidden_size"], LANGUAGE["intermediate_size"]
    shared = LANGUAGE["num_key_value_heads"] / LANGUAGE["num_attention_heads"]
    language = int((2 + 2 * shared) * width**2) + 3 * width * inner
    seen, inside = VISION["hidden_size"], VISION["intermediate_size"]
    vision = 4 * seen**2 + 3 * seen * inside
    whole = 4 * patches**2 * seen * len(VISION["fullatt_block_indexes"])
    return int(2 * language * LANGUAGE["num_hidden_layers"] * tokens + 2 * vision * VISION["depth"] * patches + whole)


def encode_flops(side: int) -> int:
    """Of the convolutions that turn a picture of `side`² pixels into latents, and of the attention in the middle."""
    base, factors = VAE["base_dim"], VAE["dim_mult"]
    pixels = side**2
    total: int = _convolution(3, base, pixels)
    for level, (inputs, outputs) in enumerate(pairwise([base, *(base * factor for factor in factors)])):
        total += _residuals(inputs, outputs, VAE["num_res_blocks"], pixels)
        if level < len(factors) - 1:
            pixels //= 4
            total += _convolution(outputs, outputs, pixels)
    top = base * factors[-1]
    return total + _middle(top, pixels) + _convolution(top, 2 * VAE["z_dim"], pixels)


def decode_flops(side: int) -> int:
    """Of the convolutions that turn latents into a picture of `side`² pixels, and of the attention in the middle."""
    base, factors = VAE["base_dim"], VAE["dim_mult"]
    top = base * factors[-1]
    pixels = (side >> len(factors) - 1) ** 2
    total = _convolution(VAE["z_dim"], top, pixels) + _middle(top, pixels)
    for level, (before, outputs) in enumerate(pairwise([top, *(base * factor for factor in reversed(factors))])):
        inputs = before // 2 if level else before  # an enlargement halves the channels
        total += _residuals(inputs, outputs, VAE["num_res_blocks"] + 1, pixels)
        if level < len(factors) - 1:
            pixels *= 4
            total += _convolution(outputs, outputs // 2, pixels)
    return total + _convolution(base, 3, pixels)


def _convolution(inputs: int, outputs: int, pixels: int, kernel: int = 9) -> int:
    return 2 * kernel * inputs * outputs * pixels


def _residuals(inputs: int, outputs: int, number: int, pixels: int) -> int:
    first = _convolution(inputs, outputs, pixels) + _convolution(outputs, outputs, pixels)
    shortcut = _convolution(inputs, outputs, pixels, kernel=1) if inputs != outputs else 0
    return first + shortcut + (number - 1) * 2 * _convolution(outputs, outputs, pixels)


def _middle(width: int, pixels: int) -> int:
    attention = 4 * _convolution(width, width, pixels, kernel=1) + 4 * pixels**2 * width
    return _residuals(width, width, 2, pixels) + attention
