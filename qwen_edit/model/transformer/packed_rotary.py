"""The rotary table in the order in which the engine's kernels read it: the threads of a warp, tile by tile.

Facts of the engine's release 1.2.1, from `src/kernels/zgemm`: which thread takes which number, `EpilogueRMSNormRope` of
`epilogues.cuh`; the size of a block, `gemm_base.cuh`; the shape that is demanded, `gemm_w4a4_launch_impl.cuh`.

- A pair is two channels side by side, as in diffusers' complex numbers. A table has sine, then cosine for each.
- A tile is 16 tokens by 4 pairs. The tiles of the same tokens follow each other.
- A tile has 4 numbers for each of 32 threads. Thread 4 · (token mod 8) + (pair mod 4) has sine and cosine for one of
  the tile's first 8 tokens, then for the token 8 rows below it.
- A block of the kernel computes 256 tokens and reads the table for all of them, whether they exist or not.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from qwen_edit.model.transformer.rotary import KEPT, RotaryTable

ROWS = 256
"""Tokens that a block of the product's kernel computes; it pads its input to a multiple of them by itself."""


class PackedRotaryTable(RotaryTable):
    """The tables of `RotaryTable`, packed. The last of them stay, 5 MB for two pictures of 1024 × 1024 with a text."""

    def __init__(self, axes: Sequence[int]) -> None:
        """Compute the frequencies, as the class above does."""
        super().__init__(axes)
        self._packed = lru_cache(KEPT)(self._pack)

    def forward(
        self,
        video_fhw: list[list[tuple[int, int, int]]],
        txt_seq_lens: list[int] | None = None,
        device: torch.device | None = None,
        max_txt_seq_len: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Of the pictures and of the text of one member of a batch: float32 [1, multiple of 256, head] each.

        Args:
            video_fhw: as in `RotaryTable`, like all the others.
            txt_seq_lens: how the engine says the lengths of the texts.
            device: of the result; the CPU where left out.
            max_txt_seq_len: how diffusers says the longest of them.
        """
        longest = max(txt_seq_lens) if txt_seq_lens else max_txt_seq_len
        return self._packed(tuple(video_fhw[0]), longest, device)

    def _pack(
        self, pictures: tuple[tuple[int, int, int], ...], length: int | None, device: torch.device | None
    ) -> tuple[Tensor, Tensor]:
        of_pictures, of_text = super().forward([list(pictures)], device=device, max_txt_seq_len=length)
        return packed(of_pictures), packed(of_text)


def packed(table: Tensor) -> Tensor:
    """Bring a table into the order of the engine's kernels; see the top of this file.

    Args:
        table: complex frequencies [tokens, pairs], pairs a multiple of 4.

    Returns:
        Float32 [1, tokens rounded up to 256, 2 · pairs]. What belongs to no token is 0.
    """
    tokens, pairs = table.shape
    waves = torch.view_as_real(table).flip(-1)  # sine, cosine: [tokens, pairs, 2]
    waves = functional.pad(waves, (0, 0, 0, 0, 0, -tokens % ROWS))
    tiles = waves.view(
        -1, 2, 8, pairs // 4, 4, 2
    )  # tile, half of it, row of the half, four pairs, pair, sine or cosine
    return tiles.permute(0, 3, 2, 4, 1, 5).reshape(1, -1, 2 * pairs)
