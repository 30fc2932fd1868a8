"""How the int4 kernels order their tensors in memory: pure permutations, both ways, on any device.

Each layout is a view of the stored memory and the order in which its axes make up the plain tensor. The views follow
what the lanes of a warp hold for an int4 or bfloat16 matrix instruction, in tiles of 128 outputs by 64 inputs.
Sizes: N outputs and K inputs are multiples of 128, the rank R is a multiple of 16.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 64
"""Inputs that share one weight scale."""


@dataclass(frozen=True)
class _Layout:
    """A stored view and the order of its axes in the plain tensor."""

    view: tuple[int, ...]
    order: tuple[int, ...]

    def unpack(self, packed: Tensor, *shape: int) -> Tensor:
        return packed.reshape(self.view).permute(self.order).reshape(shape)

    def pack(self, plain: Tensor, *shape: int) -> Tensor:
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return plain.reshape([self.view[axis] for axis in self.order]).permute(inverse).reshape(shape)


def unpack_qweight(packed: Tensor) -> Tensor:
    """Residual weights: int8 [N, K/2], two values a byte, to int8 [N, K] in -8…7 (two's complement nibbles)."""
    outputs, inputs = packed.shape[0], packed.shape[1] * 2
    nibbles = _split_nibbles(packed.contiguous().view(torch.uint8))
    return (_qweight(outputs, inputs).unpack(nibbles, outputs, inputs) ^ 8).view(torch.int8) - 8


def pack_qweight(values: Tensor) -> Tensor:
    """Inverse of `unpack_qweight`: int8 [N, K] in -8…7 to int8 [N, K/2]."""
    outputs, inputs = values.shape
    nibbles = _qweight(outputs, inputs).pack(values.view(torch.uint8) & 15, outputs, inputs)
    return _join_nibbles(nibbles).view(torch.int8)


def unpack_wscales(packed: Tensor) -> Tensor:
    """Scales of the residual weights: [K/64, N] as declared, tile by tile in memory, to [N, K/64]; any dtype."""
    groups, outputs = packed.shape
    return _wscales(outputs, groups).unpack(packed, outputs, groups)


def pack_wscales(scales: Tensor) -> Tensor:
    """Inverse of `unpack_wscales`: [N, K/64] to [K/64, N]."""
    outputs, groups = scales.shape
    return _wscales(outputs, groups).pack(scales, groups, outputs)


def unpack_vector(packed: Tensor) -> Tensor:
    """A bias [N] or a smooth factor [K], stored tile by tile, to the plain order of channels; any dtype."""
    return _vector(packed.numel()).unpack(packed, packed.numel())


def pack_vector(vector: Tensor) -> Tensor:
    """Inverse of `unpack_vector`."""
    return _vector(vector.numel()).pack(vector, vector.numel())


def unpack_proj_up(packed: Tensor) -> Tensor:
    """The factor U of the low-rank part: [N, R] packed to [N, R] plain; any dtype."""
    return _proj_up(*packed.shape).unpack(packed, *packed.shape)


def pack_proj_up(up: Tensor) -> Tensor:
    """Inverse of `unpack_proj_up`."""
    return _proj_up(*up.shape).pack(up, *up.shape)


def unpack_proj_down(packed: Tensor) -> Tensor:
    """The factor D of the low-rank part: [K, R] packed to [K, R] plain; any dtype."""
    return _proj_down(*packed.shape).unpack(packed, *packed.shape)


def pack_proj_down(down: Tensor) -> Tensor:
    """Inverse of `unpack_proj_down`."""
    return _proj_down(*down.shape).pack(down, *down.shape)


def unpack_awq_qweight(packed: Tensor) -> Tensor:
    """Weights of a W4A16 layer: int32 [N/4, K/2], eight values a word, to uint8 [N, K] in 0…15.

    Its `wscales` and `wzeros` are not packed: row-major [K/64, N]. Where K is not a multiple of 1024 a writer may pad
    their rows to the next multiple of 16; only the first K/64 mean anything.
    """
    outputs, inputs = packed.shape[0] * 4, packed.shape[1] * 2
    nibbles = _split_nibbles(packed.contiguous().view(torch.uint8))
    return _awq_qweight(outputs, inputs).unpack(nibbles, outputs, inputs)


def pack_awq_qweight(values: Tensor) -> Tensor:
    """Inverse of `unpack_awq_qweight`: uint8 [N, K] in 0…15 to int32 [N/4, K/2]."""
    outputs, inputs = values.shape
    nibbles = _awq_qweight(outputs, inputs).pack(values, outputs // 4, inputs * 4)
    return _join_nibbles(nibbles).view(torch.int32)


def _qweight(outputs: int, inputs: int) -> _Layout:
    # n = 128·axis0 + 16·axis2 + 8·axis5 + axis3, k = 64·axis1 + 32·axis6 + 8·axis4 + axis7
    return _Layout((outputs // 128, inputs // GROUP, 8, 8, 4, 2, 2, 8), (0, 2, 5, 3, 1, 6, 4, 7))


def _wscales(outputs: int, groups: int) -> _Layout:
    return _Layout((outputs // 128, groups, 8, 4, 2, 2), (0, 2, 4, 3, 5, 1))


def _vector(channels: int) -> _Layout:
    return _Layout((channels // 128, 8, 4, 2, 2), (0, 1, 3, 2, 4))


def _proj_up(outputs: int, rank: int) -> _Layout:
    return _Layout((outputs // 16, rank // 16, 8, 4, 2, 2, 2), (0, 4, 2, 1, 5, 3, 6))


def _proj_down(inputs: int, rank: int) -> _Layout:
    return _Layout((inputs // 16, rank // 16, 8, 4, 2, 2, 2), (0, 5, 3, 6, 1, 4, 2))


def _awq_qweight(outputs: int, inputs: int) -> _Layout:
    # n = 4·axis0 + axis2, k = 64·axis1 + 32·axis3 + 8·axis5 + axis4: a 16-bit half-word holds inputs that are 8 apart
    return _Layout((outputs // 4, inputs // GROUP, 4, 2, 8, 4), (0, 2, 1, 3, 5, 4))


def _split_nibbles(data: Tensor) -> Tensor:
    """uint8 [..., n] to uint8 [..., 2n] in 0…15, the low nibble first."""
    return torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)


def _join_nibbles(nibbles: Tensor) -> Tensor:
    """Inverse of `_split_nibbles`."""
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4
