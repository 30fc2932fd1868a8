"""A rough picture from latents that are not finished, without the VAE."""

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

LONGER_SIDE = 256
"""Pixels of a preview's longer side."""


class Projection:
    """A linear map from latent channels to RGB, fitted to a picture whose latents are known.

    The reference picture of an edit is such a picture, so that the map suits whatever VAE is loaded and needs no table.
    """

    def __init__(self, latents: Tensor, pixels: Tensor) -> None:
        """Fit by least squares.

        Args:
            latents: of the known picture, [channels, height / 8, width / 8].
            pixels: the known picture, [3, height, width] in −1 … 1.
        """
        small = functional.adaptive_avg_pool2d(pixels.float(), (latents.shape[-2], latents.shape[-1]))
        # On the CPU in float64: CUDA's solver wants full rank, which a picture of one colour does not have.
        solution = torch.linalg.lstsq(
            _rows(latents).cpu().double(), small.flatten(1).T.cpu().double(), driver="gelsd"
        ).solution
        self._map = solution.to(latents.device, torch.float32)

    def preview(self, latents: Tensor) -> Image.Image:
        """The picture that latents of [channels, height, width] seem to become, at most `LONGER_SIDE` pixels long."""
        height, width = latents.shape[-2:]
        pixels = (_rows(latents) @ self._map).T.reshape(3, height, width)
        levels = pixels.add(1).mul(127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        picture = Image.fromarray(levels)
        scale = LONGER_SIDE / max(width, height)
        return picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR)


def _rows(latents: Tensor) -> Tensor:
    """[channels, height, width] → [height · width, channels + 1], the last column for the bias."""
    rows = latents.float().flatten(1).T
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
