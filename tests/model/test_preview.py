import numpy as np
import torch
from PIL import Image

from qwen_edit.model.preview import LONGER_SIDE, Projection


def known_picture() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of 16 channels that are linear in the colours of a picture, and the picture in −1 … 1."""
    colours = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mixing = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
    latents = torch.einsum("lc,chw->lhw", mixing, colours) + 0.3
    return latents, colours.repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_the_preview_of_the_known_latents_is_the_known_picture() -> None:
    latents, pixels = known_picture()

    preview = Projection(latents, pixels).preview(latents)

    small = (pixels[:, ::8, ::8].permute(1, 2, 0) + 1) * 127.5
    expected = Image.fromarray(small.numpy().astype(np.uint8)).resize(preview.size, Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(preview, dtype=int) - np.asarray(expected, dtype=int)).max() <= 2


def test_other_latents_keep_their_shape_and_their_colours() -> None:
    latents, pixels = known_picture()
    tall = latents[:, :, :4]

    preview = Projection(latents, pixels).preview(tall)

    assert preview.size == (LONGER_SIDE // 2, LONGER_SIDE)


def test_a_picture_of_one_colour_can_be_fitted() -> None:
    latents = torch.ones(16, 4, 4)
    pixels = torch.full((3, 32, 32), 0.5)

    preview = Projection(latents, pixels).preview(latents)

    assert np.abs(np.asarray(preview, dtype=int) - round(1.5 * 127.5)).max() <= 1
