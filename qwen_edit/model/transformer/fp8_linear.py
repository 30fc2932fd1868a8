"""A linear layer whose weight and whose input, row by row as it comes, are in fp8.

It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for a GPU".
"""

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn

from qwen_edit.model.blank import WithoutMemory
from qwen_edit.model.transformer.fused.choose import PLAIN, Kernels
from qwen_edit.svdq.fp8 import DTYPE, FP8_MODULES, row_product


class Fp8Linear(nn.Module):
    """`x Wᵀ + b` with a scale for each row of x and each row of W.

    On CUDA the tensor cores multiply in fp8, elsewhere the same numbers are multiplied in float32.
    K and N are multiples of 16, as the tensor cores want them.
    """

    def __init__(self, inputs: int, outputs: int, kernels: Kernels = PLAIN) -> None:
        """Make a layer without numbers.

        Args:
            kernels: of which the layer takes `quantize_rows`.
        """
        super().__init__()
        self._quantize_rows = kernels.quantize_rows
        self.weight = _parameter(torch.empty(outputs, inputs, dtype=DTYPE))
        self.weight_scale = _parameter(torch.empty(outputs, 1, dtype=torch.float32))
        self.bias = _parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] → [..., N] in the dtype of x, which on CUDA is bfloat16: row-wise scales give no other."""
        rows, scales = self._quantize_rows(x.reshape(-1, x.shape[-1]))
        product = self._on_tensor_cores if x.is_cuda else self._emulated
        return product(rows, scales, x.dtype).view(*x.shape[:-1], -1)

    def _on_tensor_cores(self, rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        return row_product(rows, scales, self.weight, self.weight_scale, self.bias, dtype)

    def _emulated(self, rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        product = rows.float() @ self.weight.float().t()
        return (product * scales * self.weight_scale.t() + self.bias.float()).to(dtype)


def use_fp8(transformer: QwenImageTransformer2DModel, kernels: Kernels = PLAIN) -> None:
    """Put an `Fp8Linear` in the place of each layer of `FP8_MODULES`.

    Args:
        transformer: the dense one, without memory: its state dict is then what `fp8_block` gives for each block.
        kernels: see `Fp8Linear`.
    """
    with WithoutMemory():
        for block in transformer.transformer_blocks:
            for module in FP8_MODULES:
                plain = block.get_submodule(module)
                block.set_submodule(module, Fp8Linear(plain.in_features, plain.out_features, kernels))


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
