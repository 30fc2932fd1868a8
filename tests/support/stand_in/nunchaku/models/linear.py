"""The quantized layers: parameters as the engine declares them, products from the weights that they mean."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from qwen_edit.svdq import layout
from qwen_edit.svdq.dense import dense_svdq

SHIFT = 0.171875


def parameter(*shape: int, dtype: torch.dtype, device: Any) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


class SVDQW4A4Linear(nn.Module):
    def __init__(self, in_features: int, out_features: int, *, rank: int, precision: str, device: Any) -> None:
        super().__init__()
        if precision != "int4":
            raise ValueError(f"Invalid precision: {precision}")
        dtype = torch.bfloat16
        self.in_features, self.out_features, self.precision = in_features, out_features, precision
        self.qweight = parameter(out_features, in_features // 2, dtype=torch.int8, device=device)
        self.bias = parameter(out_features, dtype=dtype, device=device)
        self.wscales = parameter(in_features // 64, out_features, dtype=dtype, device=device)
        self.smooth_factor = parameter(in_features, dtype=dtype, device=device)
        self.smooth_factor_orig = parameter(in_features, dtype=dtype, device=device)
        self.proj_down = parameter(in_features, rank, dtype=dtype, device=device)
        self.proj_up = parameter(out_features, rank, dtype=dtype, device=device)
        self.wtscale = self.wcscales = None
        self.act_unsigned = False

    @classmethod
    def from_linear(cls, linear: nn.Linear, **kwargs: Any) -> Self:
        return cls(linear.in_features, linear.out_features, device=linear.weight.device, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = dense_svdq(dict(self.named_parameters()), SHIFT if self.act_unsigned else 0.0)
        return functional.linear(x.float(), weight, bias).to(x.dtype)


class AWQW4A16Linear(nn.Module):
    def __init__(self, in_features: int, out_features: int, *, device: Any = "cpu") -> None:
        super().__init__()
        dtype = torch.bfloat16
        self.qweight = parameter(out_features // 4, in_features // 2, dtype=torch.int32, device=device)
        self.bias = parameter(out_features, dtype=dtype, device=device)
        self.wscales = parameter(in_features // 64, out_features, dtype=dtype, device=device)
        self.wzeros = parameter(in_features // 64, out_features, dtype=dtype, device=device)

    @classmethod
    def from_linear(cls, linear: nn.Linear, device: str = "cpu", **_kwargs: Any) -> Self:
        return cls(linear.in_features, linear.out_features, device=device)

    def forward(self, x: Tensor) -> Tensor:
        values = layout.unpack_awq_qweight(self.qweight).float()
        scales, zeros = (part.float().T.repeat_interleave(64, dim=1) for part in (self.wscales, self.wzeros))
        return functional.linear(x.float(), values * scales + zeros, self.bias.float()).to(x.dtype)
