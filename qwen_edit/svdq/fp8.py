"""From packed tensors to fp8: the attention's and the MLPs' layers with a scale for each output, the rest dense."""

from collections.abc import Mapping

import torch
from torch import Tensor

from qwen_edit.svdq.dense import dense_block
from qwen_edit.svdq.modules import SVDQ_MODULES, block_prefix

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
"""448: what the largest value of a row is scaled to. A larger one would become NaN, not 448."""

FP8_MODULES = tuple(SVDQ_MODULES)
"""The layers of a block whose weights are kept in fp8."""


def fp8_block(
    packed: Mapping[str, Tensor], block: int, file: str, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """The tensors of one block whose `FP8_MODULES` are `Fp8Linear`; see `dense_block`, which the rest is from.

    Args:
        packed: at least this block's packed tensors under their full names.
        block: index of the block.
        file: name of the file they come from, for the error.
        dtype: of what is not in fp8, the biases of the layers that are among it.

    Returns:
        As `dense_block`, but of `FP8_MODULES` the `weight` in fp8 [N, K], quantized from float32, and beside it
        `weight_scale`, float32 [N, 1].

    Raises:
        CheckpointError: a value is not finite.
    """
    tensors = dense_block(packed, block, file, torch.float32)
    for module in FP8_MODULES:
        name = f"{block_prefix(block)}{module}.weight"
        tensors[name], tensors[f"{name}_scale"] = quantize_rows(tensors[name])
    return {
        name: tensor if name.endswith("_scale") or tensor.dtype == DTYPE else tensor.to(dtype)
        for name, tensor in tensors.items()
    }


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """fp8 [rows, K] and float32 scales [rows, 1], whose product is the matrix within 1/16 of each value.

    Values under a 2¹⁵th of their row's largest are rounded to steps of a fixed size instead.
    """
    scales = (torch.linalg.vector_norm(matrix, torch.inf, dim=1, keepdim=True).float() / LARGEST).clamp(min=_LEAST)
    return (matrix / scales).to(DTYPE), scales


_LEAST = torch.finfo(torch.float32).tiny  # for a row of zeros


def row_product(
    rows: Tensor, scales: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    """`x Wᵀ + b` on the tensor cores: [M, N] in `dtype`, which on CUDA is bfloat16.

    Args:
        rows: x in fp8, [M, K].
        scales: of its rows, float32 [M, 1].
        weight: W in fp8, [N, K]; K and N are multiples of 16.
        weight_scale: of its rows, float32 [N, 1].
        bias: [N] in `dtype`.

    Raises:
        RuntimeError: this device does not compute it with this build of PyTorch.
    """
    # The second operand is column-major, as cuBLAS and CUTLASS want it, which Wᵀ is without a copy. The faster
    # accumulation keeps fewer bits of the sum than float32 has, and many more than the operands.
    return torch._scaled_mm(
        rows,
        weight.t(),
        scale_a=scales,
        scale_b=weight_scale.t(),
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=True,
    )
