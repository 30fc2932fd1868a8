"""The rotary tables of the transformer's attention, of which diffusers' own class keeps more than it should."""

from functools import cache, lru_cache

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from torch import Tensor

THETA = 10000
"""What the stock transformer hands to `QwenEmbedRope`."""

KEPT = 8
"""Pictures whose tables stay: 2 MB each for one of 1024 × 1024 pixels."""


class Rotary(QwenEmbedRope):
    """The stock tables, cached with this object.

    The stock class caches them for all its objects together: up to 128 pictures, and every object that ever lived. And
    it asks on each call whether it is being compiled, which imports the compiler.
    """

    def __init__(self, axes: list[int]) -> None:
        """Compute the frequencies of 8,192 positions.

        Args:
            axes: how many of a head's channels turn with the frame, the row and the column: `axes_dims_rope`.
        """
        super().__init__(THETA, axes, scale_rope=True)
        stock = QwenEmbedRope._compute_video_freqs.__wrapped__
        self._compute_video_freqs = lru_cache(KEPT)(lambda *size: stock(self, *size))
        self._get_device_freqs = cache(self._frequencies_on)

    def _frequencies_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.pos_freqs.to(device), self.neg_freqs.to(device)
