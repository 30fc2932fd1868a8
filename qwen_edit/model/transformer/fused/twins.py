"""The functions in plain PyTorch: what the kernels have to equal, and what serves where those cannot.

The fourth one, `quantize_rows`, is that of `qwen_edit.svdq.fp8`.
"""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm


def norm_rotate(x: Tensor, weight: Tensor, eps: float, positions: Tensor) -> Tensor:
    """RMSNorm over the channels, then each pair of channels turned by the angle of its token's position.

    The norm is computed in float32 and rounded to the dtype of x, as the transformer's RMSNorm does; the turned pairs
    are computed in float32 from that, and rounded once.

    Args:
        x: [batch, tokens, heads, channels]; may be a view, whose innermost axis is contiguous.
        weight: [channels].
        positions: cosine and sine, float32 [tokens, channels / 2, 2].

    Returns:
        As x, and contiguous.
    """
    cosine, sine = positions[:, None].unbind(-1)  # [tokens, 1, channels / 2]
    even, odd = rms_norm(x, weight.shape, weight, eps).float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2).to(x.dtype)


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis, without weight and bias of its own, then `· (1 + scale) + shift`, rounded once.

    Before, `1 + scale` is rounded to the dtype of x; where each member of a batch has a scale, the norm is too.

    Args:
        x: [batch, tokens, width].
        scale: what can be expanded to the shape of x: [1 or batch, 1, width].
        shift: likewise.
    """
    width = x.shape[-1:]
    if scale.numel() == shift.numel() == x.shape[-1]:
        return layer_norm(x, width, 1 + scale.flatten(), shift.flatten(), eps)
    return torch.addcmul(shift, layer_norm(x, width, eps=eps), 1 + scale)


def gated(residual: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """`residual + gate · update`, rounded once.

    Args:
        residual: [batch, tokens, width].
        gate: what can be expanded to that: [1 or batch, 1, width].
        update: as the residual.
    """
    return torch.addcmul(residual, gate, update)
