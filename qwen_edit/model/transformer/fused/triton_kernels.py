"""The kernels, which Triton compiles for the card. One program has one row, or some heads of one token.

It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for a GPU".

A program reads its values once, computes in float32 registers, and writes once. It rounds where the twin rounds. Sizes
are constants of the compiled kernel, but for the number of tokens: every text has another. Blocks are powers of two, as
Triton wants them; a lane beyond the row neither reads nor writes.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens"])
def norm_rotate(
    x: tl.tensor,
    weight: tl.tensor,
    positions: tl.tensor,
    result: tl.tensor,
    x_of_batch: tl.int64,
    x_of_token: tl.int64,
    x_of_head: tl.int64,
    result_of_batch: tl.int64,
    result_of_token: tl.int64,
    result_of_head: tl.int64,
    tokens: int,
    eps: tl.constexpr,
    heads: tl.constexpr,
    channels: tl.constexpr,
    head_block: tl.constexpr,
    channel_block: tl.constexpr,
) -> None:
    """`twins.norm_rotate` for `head_block` heads of one token; `*_of_*` are strides in elements."""
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    head = tl.program_id(1) * head_block + tl.arange(0, head_block)[:, None]
    channel = tl.arange(0, channel_block)
    inside = (head < heads) & (channel < channels)[None, :]

    start = x + batch * x_of_batch + token * x_of_token
    values = tl.load(start + head * x_of_head + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + channel, mask=channel < channels, other=0.0).to(tl.float32)
    length = tl.rsqrt(tl.sum(values * values, axis=1) / channels + eps)
    normed = (values * length[:, None] * factor[None, :]).to(result.dtype.element_ty).to(tl.float32)

    angle = tl.load(positions + token * channels + channel, mask=channel < channels, other=0.0)
    cosine, sine = tl.split(tl.reshape(angle, [1, channel_block // 2, 2]))
    even, odd = tl.split(tl.reshape(normed, [head_block, channel_block // 2, 2]))
    turned = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
    tl.store(
        result + batch * result_of_batch + token * result_of_token + head * result_of_head + channel[None, :],
        tl.reshape(turned, [head_block, channel_block]).to(result.dtype.element_ty),
        mask=inside,
    )


@triton.jit(do_not_specialize=["tokens"])
def modulate(
    x: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    result: tl.tensor,
    x_of_batch: tl.int64,
    x_of_token: tl.int64,
    scale_of_batch: tl.int64,
    scale_of_token: tl.int64,
    shift_of_batch: tl.int64,
    shift_of_token: tl.int64,
    tokens: int,
    eps: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """`twins.modulate` for one token, whose norm is not rounded; `*_of_*` are strides, 0 along what is expanded."""
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    column = tl.arange(0, block)
    inside = column < width

    values = tl.load(x + batch * x_of_batch + token * x_of_token + column, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values, axis=0) / width, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)

    scales = tl.load(scale + batch * scale_of_batch + token * scale_of_token + column, mask=inside, other=0.0)
    shifts = tl.load(shift + batch * shift_of_batch + token * shift_of_token + column, mask=inside, other=0.0)
    factor = (scales.to(tl.float32) + 1.0).to(result.dtype.element_ty).to(tl.float32)
    modulated = shifts.to(tl.float32) + normed * factor
    tl.store(result + row * width + column, modulated.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def gated(
    residual: tl.tensor,
    gate: tl.tensor,
    update: tl.tensor,
    result: tl.tensor,
    residual_of_batch: tl.int64,
    residual_of_token: tl.int64,
    gate_of_batch: tl.int64,
    gate_of_token: tl.int64,
    update_of_batch: tl.int64,
    update_of_token: tl.int64,
    tokens: int,
    width: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """`twins.gated` for `block` channels of one token; `*_of_*` are strides in elements, 0 along what is expanded."""
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width

    values = tl.load(residual + batch * residual_of_batch + token * residual_of_token + column, mask=inside, other=0.0)
    gates = tl.load(gate + batch * gate_of_batch + token * gate_of_token + column, mask=inside, other=0.0)
    updates = tl.load(update + batch * update_of_batch + token * update_of_token + column, mask=inside, other=0.0)
    summed = values.to(tl.float32) + gates.to(tl.float32) * updates.to(tl.float32)
    tl.store(result + row * width + column, summed.to(result.dtype.element_ty), mask=inside)


@triton.jit
def quantize_rows(
    matrix: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    of_row: tl.int64,
    largest: tl.constexpr,
    least: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """`qwen_edit.svdq.fp8.quantize_rows` for one row, which it keeps in registers between the maximum and the codes.

    A row is multiplied by the reciprocal of its scale: a division of each value would cost more time than the memory.
    A value within a float32 rounding of the middle between two codes may get the other one.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width

    values = tl.load(matrix + row * of_row + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.div_rn(tl.max(tl.abs(values), axis=0), largest), least)
    tl.store(scales + row, scale)
    tl.store(codes + row * width + column, (values * tl.div_rn(1.0, scale)).to(codes.dtype.element_ty), mask=inside)
