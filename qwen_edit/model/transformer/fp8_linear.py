"""A linear layer whose weight and whose input, row by row as it comes, are in fp8.

It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for a GPU".
"""

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn

from qwen_edit.model.blank import WithoutMemory
from qwen_edit.svdq.fp8 import DTYPE, quantize_rows
from qwen_edit.svdq.modules import SVDQ_MODULES, stock_modules


class Fp8Input:
    """Quantizes what a layer is given, or several layers one after the other: once, where it is the same tensor."""

    def __init__(self, layers: int = 1) -> None:
        self._layers = layers
        self._left = 0
        self._kept: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of [..., K] as by `quantize_rows`, which nothing is kept of once the last layer has had them."""
        if self._kept is None or self._kept[0] is not x:
            self._kept = (x, quantize_rows(x.reshape(-1, x.shape[-1])))
            self._left = self._layers
        quantized = self._kept[1]
        self._left -= 1
        if not self._left:
            self._kept = None
        return quantized


class Fp8Linear(nn.Module):
    """`x Wᵀ + b` with a scale for each row of x and each row of W.

    On CUDA the tensor cores multiply in fp8, elsewhere the same numbers are multiplied in float32.
    K and N are multiples of 16, as the tensor cores want them.
    """

    def __init__(self, inputs: int, outputs: int, quantized: Fp8Input | None = None) -> None:
        """Make a layer without numbers.

        Args:
            quantized: what it shares with the layers that have the same input; its own where left out.
        """
        super().__init__()
        self._quantized = quantized or Fp8Input()
        self.weight = _parameter(torch.empty(outputs, inputs, dtype=DTYPE))
        self.weight_scale = _parameter(torch.empty(outputs, 1, dtype=torch.float32))
        self.bias = _parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] → [..., N] in the dtype of x, which on CUDA is bfloat16: row-wise scales give no other."""
        rows, scales = self._quantized(x)
        product = self._on_tensor_cores if x.is_cuda else self._emulated
        return product(rows, scales, x.dtype).view(*x.shape[:-1], -1)

    def _on_tensor_cores(self, rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        # The second operand is column-major, as cuBLAS and CUTLASS want it, which Wᵀ is without a copy. The faster
        # accumulation keeps fewer bits of the sum than float32 has, and many more than the operands.
        return torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scales,
            scale_b=self.weight_scale.t(),
            bias=self.bias,
            out_dtype=dtype,
            use_fast_accum=True,
        )

    def _emulated(self, rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        product = rows.float() @ self.weight.float().t()
        return (product * scales * self.weight_scale.t() + self.bias.float()).to(dtype)


def use_fp8(transformer: QwenImageTransformer2DModel) -> None:
    """Put an `Fp8Linear` in the place of each layer of `FP8_MODULES`; those that the file stacks have the same input.

    Args:
        transformer: the stock one, without memory: its state dict is then what `fp8_block` gives for each block.
    """
    with WithoutMemory():
        for block in transformer.transformer_blocks:
            for module in SVDQ_MODULES:
                names = stock_modules(module)
                quantized = Fp8Input(len(names))
                for name in names:
                    stock = block.get_submodule(name)
                    block.set_submodule(name, Fp8Linear(stock.in_features, stock.out_features, quantized))


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
