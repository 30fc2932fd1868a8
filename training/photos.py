"""Training pictures: the freely licensed photos that scikit-image carries, and procedural ones."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

TRAINING = (
    "astronaut.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png", "hubble_deep_field.jpg",
    "ihc.png", "retina.jpg", "camera.png", "brick.png", "grass.png", "gravel.png", "coins.png", "moon.png",
    "color.png",
)  # fmt: skip
"""Files in scikit-image's data folder: CC0, in the public domain, or drawn for it, as its documentation says."""

HELD_OUT = ("chelsea.png", "rocket.jpg")
"""What quality is measured on: the photos of `tests/photos`."""


def load() -> list[Tensor]:
    """The training photos, float [3, height, width] in 0 … 1.

    Raises:
        ModuleNotFoundError: scikit-image is not installed; it is in the extra `train`.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("training reads the photos of scikit-image: pip install -e '.[train]'")
    folder = Path(spec.origin).parent / "data"
    return [read(folder / name) for name in TRAINING]


def read(path: Path) -> Tensor:
    """A picture file as float [3, height, width] in 0 … 1."""
    with Image.open(path) as picture:
        levels = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(levels.copy()).permute(2, 0, 1).float() / 255


class Sampler:
    """Random crops of photos and procedural pictures, with random scale, orientation and colours."""

    def __init__(self, photos: list[Tensor], seed: int) -> None:
        self._photos = photos
        self._random = np.random.default_rng(seed)

    def batch(self, count: int, height: int, width: int) -> Tensor:
        """Pictures [count, 3, height, width] in 0 … 1."""
        return torch.stack([self._recoloured(self._picture(height, width)) for _ in range(count)]).clamp(0, 1)

    def _picture(self, height: int, width: int) -> Tensor:
        return self._texture(height, width) if self._random.random() < 0.2 else self._crop(height, width)

    def _crop(self, height: int, width: int) -> Tensor:
        """A crop at a random scale: sharper than the file, as it is, or enlarged up to threefold."""
        photo = self._photos[self._random.integers(len(self._photos))]
        if self._random.random() < 0.5:
            photo = photo.transpose(1, 2)
        scale = min(3.0, max(height / photo.shape[1], width / photo.shape[2], np.exp(self._random.uniform(-0.9, 1.1))))
        rows, columns = (
            min(round(side / scale), most) for side, most in zip((height, width), photo.shape[1:], strict=True)
        )
        top, left = (
            self._random.integers(most - side + 1) for side, most in zip((rows, columns), photo.shape[1:], strict=True)
        )
        crop = photo[None, :, top : top + rows, left : left + columns]
        crop = interpolate(crop, (height, width), mode="bicubic", antialias=True, align_corners=False)[0]
        return crop.flip(2) if self._random.random() < 0.5 else crop

    def _texture(self, height: int, width: int) -> Tensor:
        """Coloured noise whose power falls with frequency, between two colours, or one flat colour with an edge."""
        size = max(height, width)
        frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
        spectrum = np.fft.rfft2(self._random.standard_normal((size, size))) / frequencies ** self._random.uniform(
            1, 2.5
        )
        field = np.fft.irfft2(spectrum, (size, size))[:height, :width]
        field = np.clip(0.5 + 0.3 * (field - field.mean()) / field.std(), 0, 1)
        if self._random.random() < 0.5:
            field = (field > 0.5).astype(float)
        one, other = self._random.random((2, 3, 1, 1))
        return torch.from_numpy(one + (other - one) * field[None]).float()

    def _recoloured(self, picture: Tensor) -> Tensor:
        """Random exposure, saturation and white balance."""
        gamma, saturation = np.exp(self._random.uniform(-0.5, 0.5)), self._random.uniform(0, 1.6)
        gains = torch.from_numpy(np.exp(self._random.uniform(-0.25, 0.25, (3, 1, 1)))).float()
        grey = picture.mean(0, keepdim=True)
        mixed = (grey + (picture - grey) * saturation) * gains
        if self._random.random() < 0.3:
            mixed = mixed[torch.from_numpy(self._random.permutation(3))]
        recoloured: Tensor = mixed.clamp(0, 1) ** gamma
        return recoloured
