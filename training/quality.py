"""How near an edited photo comes to what it should be, in decibels."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qwen_edit.edit.geometry import default_size
from training.edits import EDITS


@dataclass(frozen=True)
class Score:
    """PSNR in dB of an edited photo against the exact target of its instruction, and of the nearest other one."""

    right: float
    wrong: float

    @property
    def margin(self) -> float:
        return self.right - self.wrong


def pixels(picture: Image.Image) -> Tensor:
    """RGB as float [3, height, width] in 0 … 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def reference(photo: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """The photo as the pipeline shows it to the model, resized as it does that; of it, what an edit can be compared to.

    Args:
        size: width and height that were asked for, multiples of 16. The demo then gives the middle of the picture, at
            the scale of the reference: positions are counted from the middle, and it copies by position.
    """
    shown = photo.convert("RGB").resize(default_size(photo.size), Image.Resampling.LANCZOS)
    if size is None:
        return shown
    left, top = (
        _tokens_before_middle(whole) - _tokens_before_middle(part) for whole, part in zip(shown.size, size, strict=True)
    )
    return shown.crop((16 * left, 16 * top, 16 * left + size[0], 16 * top + size[1]))


def _tokens_before_middle(side: int) -> int:
    return side // 16 - side // 16 // 2


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal to noise ratio in dB of pixels in 0 … 1."""
    return float(-10 * torch.log10((one - other).square().mean().clamp(min=1e-10)))


def score(edited: Image.Image, photo: Image.Image, name: str) -> Score:
    """Measure an edit of a photo, by the edit's name in `EDITS`; the size is that of the result."""
    original, result = pixels(reference(photo, edited.size)), pixels(edited)
    levels = {other: psnr(result, edit(original)) for other, edit in EDITS.items()}
    right = levels.pop(name)
    return Score(right, max(levels.values()))
