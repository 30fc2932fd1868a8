"""The functions of `twins` through Triton's kernels, on the current device and stream.

It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for a GPU".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen_edit.model.transformer.fused import triton_kernels
from qwen_edit.svdq.fp8 import DTYPE, LARGEST

ALIGNMENT = 16
"""Bytes and elements. Triton reads 16 bytes at a time where it knows that a row begins at a multiple of them, and
compiles another kernel where it does not know it."""

VALUES_OF_PROGRAM = 1024
"""What a program of four warps has of a tensor where it may choose: 8 values a thread, 16 bytes of bfloat16."""

VALUES_OF_WARP = 1024
"""What a warp has of a row that has to stay in registers: 32 values a thread."""

LEAST = torch.finfo(torch.float32).tiny
"""The scale of a row of zeros, as in `qwen_edit.svdq.fp8`."""


class Launch(NamedTuple):
    """A kernel with its grid, its arguments, and how many warps a program has."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    warps: int

    def run(self) -> None:
        """Put it on the current stream; compile it first where neither the process nor Triton's cache has it."""
        self.kernel[self.grid](*self.arguments, **self.options)

    def compile(self) -> Any:  # noqa: ANN401 - Triton's kernel
        """Compile it as `run` would, and hand it out."""
        return self.kernel.warmup(*self.arguments, grid=self.grid, **self.options)

    @property
    def options(self) -> dict[str, object]:
        """Of the compiler. What the environment could say otherwise is said here, because it counts in the cache."""
        return {"num_warps": self.warps, "enable_fp_fusion": True}


def norm_rotate(x: Tensor, weight: Tensor, eps: float, positions: Tensor, out: Tensor) -> Tensor:
    """`twins.norm_rotate`."""
    norming(x, weight, eps, positions, out).run()
    return out


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """`twins.modulate`."""
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    modulating(x, scale, shift, eps, result).run()
    return result


def gated(residual: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """`twins.gated`."""
    result = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    gating(residual, gate, update, result).run()
    return result


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`qwen_edit.svdq.fp8.quantize_rows`; the card is of compute capability 8.9 or later."""
    codes = torch.empty(matrix.shape, dtype=DTYPE, device=matrix.device)
    scales = torch.empty((len(matrix), 1), dtype=torch.float32, device=matrix.device)
    quantizing(matrix, codes, scales).run()
    return codes, scales


def norming(x: Tensor, weight: Tensor, eps: float, positions: Tensor, result: Tensor) -> Launch:
    """`norm_rotate` into a result, which may be a part of something larger, its channels side by side."""
    x, weight, positions = _aligned(x), _aligned(weight), _aligned(positions.flatten(1))
    batch, tokens, heads, channels = x.shape
    channel_block = _power(channels)
    # As many heads of a token as divide them: with 24 heads of 128 channels there is no lane beyond them.
    head_block = min(heads & -heads, max(VALUES_OF_PROGRAM // channel_block, 1))
    strides = (*x.stride()[:3], *result.stride()[:3])
    return Launch(
        triton_kernels.norm_rotate,
        (batch * tokens, heads // head_block),
        (x, weight, positions, result, *strides, tokens, eps, heads, channels, head_block, channel_block),
        _warps(head_block * channel_block, VALUES_OF_PROGRAM // 4),
    )


def modulating(x: Tensor, scale: Tensor, shift: Tensor, eps: float, result: Tensor) -> Launch:
    """`modulate` into a result."""
    x, scale, shift = _aligned(x), _aligned(scale).expand(x.shape), _aligned(shift).expand(x.shape)
    batch, tokens, width = x.shape
    strides = (*x.stride()[:2], *scale.stride()[:2], *shift.stride()[:2])
    block = _power(width)
    return Launch(
        triton_kernels.modulate,
        (batch * tokens,),
        (x, scale, shift, result, *strides, tokens, eps, width, block),
        _warps(block, VALUES_OF_WARP),
    )


def gating(residual: Tensor, gate: Tensor, update: Tensor, result: Tensor) -> Launch:
    """`gated` into a result."""
    residual, update = _aligned(residual), _aligned(update)
    gate = _aligned(gate).expand(residual.shape)
    batch, tokens, width = residual.shape
    strides = (*residual.stride()[:2], *gate.stride()[:2], *update.stride()[:2])
    block = min(_power(width), VALUES_OF_PROGRAM)
    return Launch(
        triton_kernels.gated,
        (batch * tokens, -(-width // block)),
        (residual, gate, update, result, *strides, tokens, width, block),
        _warps(block, VALUES_OF_PROGRAM // 4),
    )


def quantizing(matrix: Tensor, codes: Tensor, scales: Tensor) -> Launch:
    """`quantize_rows` into codes and scales."""
    matrix = _aligned(matrix)
    rows, width = matrix.shape
    block = _power(width)
    return Launch(
        triton_kernels.quantize_rows,
        (rows,),
        (matrix, codes, scales, matrix.stride(0), LARGEST, LEAST, width, block),
        _warps(block, VALUES_OF_WARP),
    )


LAUNCHES: dict[str, Callable[..., Launch]] = {
    "norm_rotate": norming,
    "modulate": modulating,
    "gated": gating,
    "quantize_rows": quantizing,
}
"""What each function launches, given its arguments and its results."""


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its rows are not contiguous or do not begin at multiples of 16."""
    *strides, innermost = tensor.stride()
    if innermost == 1 and tensor.data_ptr() % ALIGNMENT == 0 and not any(stride % ALIGNMENT for stride in strides):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _power(length: int) -> int:
    """The least power of two that is not less."""
    return 1 << (length - 1).bit_length()


def _warps(values: int, of_warp: int) -> int:
    """Between 1 and 16 warps for the values of a program; all three are powers of two."""
    return min(max(values // of_warp, 1), 16)
