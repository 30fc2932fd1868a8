"""The rotary table of the transformer's attention: equal to diffusers' `QwenEmbedRope`, and kept with its transformer.

The stock class keeps its tables for all its objects together: up to 128 pictures, and every object that ever lived. And
it asks on each call whether it is being compiled, which imports the compiler.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

THETA = 10000
"""The base of the frequencies, as the stock transformer sets it."""

POSITIONS = 4096
"""Positions on either side of the middle."""

KEPT = 8
"""Pictures whose tables stay: 2 MB each for one of 1024 × 1024 pixels."""


class _Frequencies(nn.Module):
    """Complex frequencies by frame, row and column for pictures, and by position for the text behind them.

    Rows and columns are counted from the middle of a picture.

    Attributes:
        pos_freqs: of the positions from 0 on, complex64 [4096, head / 2].
    """

    def __init__(self, axes: Sequence[int]) -> None:
        """Compute the frequencies of 8,192 positions.

        Args:
            axes: how many of a head's channels turn with the frame, the row and the column: `axes_dims_rope`.
        """
        super().__init__()
        self._axes = list(axes)
        # Not buffers: a change of dtype would cost them their imaginary part.
        self.pos_freqs = self._frequencies(torch.arange(POSITIONS))
        self._neg_freqs = self._frequencies(torch.arange(-POSITIONS, 0))
        self._on = cache(lambda device: (self.pos_freqs.to(device), self._neg_freqs.to(device)))
        self._of_picture = lru_cache(KEPT)(self._picture)

    def complex_positions(
        self, shapes: list[tuple[int, int, int]], longest: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Of the pictures, complex64 [tokens, head / 2], and of the text, [longest, head / 2].

        Args:
            shapes: frames, rows and columns of each picture.
            longest: tokens of the longest text.
            device: of the result.
        """
        frequencies = [self._of_picture(*shape, index, device) for index, shape in enumerate(shapes)]
        start = max(side // 2 for _, height, width in shapes for side in (height, width))
        return torch.cat(frequencies), self._on(device)[0][start : start + longest]

    def _frequencies(self, positions: Tensor) -> Tensor:
        """Complex64 [positions, head / 2]: each axis turns its share of the channels."""
        angles = [
            torch.outer(positions, 1.0 / torch.pow(THETA, torch.arange(0, axis, 2).to(torch.float32).div(axis)))
            for axis in self._axes
        ]
        return torch.cat([torch.polar(torch.ones_like(angle), angle) for angle in angles], dim=1)

    def _picture(self, frames: int, height: int, width: int, index: int, device: torch.device) -> Tensor:
        """Of the picture at `index`: [frames · height · width, head / 2]."""
        halves = [axis // 2 for axis in self._axes]
        ahead, behind = (torch.split(table, halves, dim=1) for table in self._on(device))
        size = (frames, height, width, -1)
        by_frame = ahead[0][index : index + frames].view(frames, 1, 1, -1).expand(size)
        by_row = _centred(ahead[1], behind[1], height).view(1, height, 1, -1).expand(size)
        by_column = _centred(ahead[2], behind[2], width).view(1, 1, width, -1).expand(size)
        return torch.cat([by_frame, by_row, by_column], dim=-1).flatten(0, 2)


class RotaryTable(_Frequencies):
    """The table as the stock transformer and the engine want it."""

    def forward(
        self,
        video_fhw: list[list[tuple[int, int, int]]],
        txt_seq_lens: list[int] | None = None,
        device: torch.device | None = None,
        max_txt_seq_len: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Of the pictures, complex64 [tokens, head / 2], and of the text, [longest, head / 2].

        Args:
            video_fhw: frames, rows and columns of each picture, for each member of a batch; all members are alike.
            txt_seq_lens: how the engine says the lengths of the texts.
            device: of the result; the CPU where left out.
            max_txt_seq_len: how diffusers says the longest of them.
        """
        longest = max(txt_seq_lens) if txt_seq_lens else max_txt_seq_len
        if longest is None:
            raise ValueError("the length of the text is missing: expected txt_seq_lens or max_txt_seq_len")
        return self.complex_positions(video_fhw[0], int(longest), device or torch.device("cpu"))


class Positions(NamedTuple):
    """Where the tokens are: cosine and sine of the angle of each pair of channels, float32 [tokens, head / 2, 2].

    `drawn` is how many of the picture's tokens are of the picture that is being made; those of the pictures to edit
    are behind them.
    """

    picture: Tensor
    text: Tensor
    drawn: int


class RealRotaryTable(_Frequencies):
    """The table in real numbers, as the dense backends' blocks want it: the compiler does not take complex ones."""

    def forward(
        self, video_fhw: list[list[tuple[int, int, int]]], max_txt_seq_len: int, device: torch.device
    ) -> Positions:
        """See `RotaryTable.forward`."""
        shapes = video_fhw[0]
        picture, text = self.complex_positions(shapes, int(max_txt_seq_len), device)
        return Positions(torch.view_as_real(picture), torch.view_as_real(text), prod(shapes[0]))


def _centred(ahead: Tensor, behind: Tensor, length: int) -> Tensor:
    """The positions around the middle of a side; the one more of an odd side lies before it."""
    return torch.cat([behind[-(length - length // 2) :], ahead[: length // 2]])
