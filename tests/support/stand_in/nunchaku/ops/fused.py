"""The fused operation: the engine's signature and demands, its rotary table in a warp's order, plain products."""

from typing import Any

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor

from ..models.linear import SVDQW4A4Linear

HEAD, ROWS, EPSILON = 128, 256, 1e-6


def fused_qkv_norm_rottary(
    x: Tensor,
    proj: SVDQW4A4Linear,
    norm_q: RMSNorm | torch.nn.RMSNorm | None = None,
    norm_k: RMSNorm | torch.nn.RMSNorm | None = None,
    rotary_emb: Tensor | None = None,
    output: Any = None,
    attn_tokens: int = 0,
) -> Tensor:
    batch, length, width = x.shape
    rows = x.view(batch * length, width)
    if norm_q is None or norm_k is None or rotary_emb is None or isinstance(output, tuple) or attn_tokens:
        raise NotImplementedError("the stand-in knows one way of calling this")
    for norm in (norm_q, norm_k):
        require(isinstance(norm, RMSNorm | torch.nn.RMSNorm) and norm.weight.dtype == x.dtype)
    if output is None:
        output = x.new_empty(len(rows), proj.out_features)
    require(output.shape == (len(rows), proj.out_features) and output.is_contiguous())
    require(rotary_emb.dtype == torch.float32 and rotary_emb.ndim == 3 and rotary_emb.shape[2] == HEAD)
    require(rotary_emb.shape[0] * rotary_emb.shape[1] == -(-len(rows) // ROWS) * ROWS and rotary_emb.is_contiguous())
    query, key, value = proj(rows).float().chunk(3, dim=1)
    sine, cosine = waves(rotary_emb, len(rows))
    turned = [turn(normed(part, norm), sine, cosine) for part, norm in ((query, norm_q), (key, norm_k))]
    output.copy_(torch.cat([*turned, value], dim=1))
    result: Tensor = output.view(batch, length, -1)
    return result


def waves(packed: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """What the threads hold, looked up for each row and pair of channels: [rows, pairs] each."""
    row = torch.arange(rows, device=packed.device)[:, None]
    pair = torch.arange(HEAD // 2, device=packed.device)
    tile = row // 16 * (HEAD // 8) + pair // 4
    thread, lower_half = row % 8 * 4 + pair % 4, row % 16 // 8
    first = (tile * 32 + thread) * 4 + lower_half * 2
    return packed.flatten()[first], packed.flatten()[first + 1]


def normed(part: Tensor, norm: Any) -> Tensor:
    heads = part.view(len(part), -1, HEAD)
    result: Tensor = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + EPSILON) * norm.weight.float()
    return result


def turn(heads: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    even, odd = heads[..., 0::2], heads[..., 1::2]
    sine, cosine = sine[:, None], cosine[:, None]
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(1)


def require(met: bool) -> None:
    """The engine ends the process."""
    if not met:
        raise AssertionError("a demand of the kernel is not met")
