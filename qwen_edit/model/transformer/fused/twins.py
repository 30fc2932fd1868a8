"""What is between the matrix products of a block, in plain operations that pass over memory as few times as they can.

`python -m bench.gpu.traffic` counts the passes, beside those of one kernel for each function.
"""

import torch
from torch import Tensor
from torch.nn import functional


def norm_rotate(x: Tensor, weight: Tensor, eps: float, positions: Tensor, out: Tensor) -> Tensor:
    """The RMSNorm of queries or keys, then their rotary embedding, which turns pairs of neighbouring channels.

    The norm is computed in float32 and rounded to the dtype of x with its weight applied; so is the rotation.

    Args:
        x: [batch, tokens, heads, channels], perhaps a part of a larger product.
        weight: of the norm, [channels].
        eps: what is added to the mean square.
        positions: cosine and sine of each pair's angle, float32 [tokens, channels / 2, 2].
        out: where the result goes, of the shape and the dtype of x: perhaps the tokens of one stream among those of
            both. Channels lie side by side.

    Returns:
        `out`.
    """
    normed = functional.rms_norm(x, weight.shape, weight, eps)
    if out.is_contiguous():
        return _rotated(normed, positions, out)
    # Some members' tokens of one stream, which have gaps: the compiler takes no such `out` of an operation.
    return out.copy_(_rotated(normed, positions, torch.empty_like(out, memory_format=torch.contiguous_format)))


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """`LayerNorm(x) · (1 + scale) + shift`; the norm, over the last axis, has no weights of its own.

    Args:
        x: [batch, tokens, width].
        scale: [1 or batch, 1, width].
        shift: the same.
        eps: what is added to the variance.
    """
    width = x.shape[-1:]
    if len(scale) > 1:
        return torch.addcmul(shift, functional.layer_norm(x, width, eps=eps), 1 + scale)
    # As the norm's own weights they cost no pass, and no rounding in between.
    return functional.layer_norm(x, width, 1 + scale.flatten(), shift.flatten(), eps)


def gated(residual: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """`residual + gate · update`, rounded once.

    Args:
        residual: [batch, tokens, width].
        gate: [1 or batch, 1, width].
        update: as the residual.
    """
    return torch.addcmul(residual, gate, update)


def _rotated(x: Tensor, positions: Tensor, out: Tensor) -> Tensor:
    """Turn each pair of channels by the angle of its position, in float32, into contiguous memory."""
    pairs = x.view(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., :1], pairs[..., 1:]
    cosine, sine = positions.unbind(-1)
    # Where the angle takes an even channel, and where it takes an odd one: [tokens, 1, channels / 2, 2].
    of_even, of_odd = positions[:, None], torch.stack([-sine, cosine], dim=-1)[:, None]
    # Operands of two dtypes, and a result that is rounded as it is written: no pass only converts.
    torch.addcmul(even * of_even, odd, of_odd, out=out.view(pairs.shape))
    return out
