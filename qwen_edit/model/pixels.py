"""What the VAE is given of a picture, by table and to the bits of the stock processor."""

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

LEVELS = np.arange(256, dtype=np.uint8)


class VaePixels(VaeImageProcessor):
    """The stock processor, whose arithmetic on the 256 levels of a pixel fills a table: one pass, not several."""

    def preprocess(self, image: Image.Image, height: int, width: int) -> Tensor:
        """Turn a picture into numbers.

        Args:
            image: RGB, of width × height pixels already.

        Returns:
            Float32 [1, 3, height, width] in −1 … 1.
        """
        if image.size != (width, height):
            raise ValueError(f"the picture has {image.size} pixels, expected {(width, height)}")
        ramp = Image.fromarray(np.repeat(LEVELS.reshape(16, 16, 1), 3, axis=2))
        table = super().preprocess(ramp, 16, 16)[0, 0].flatten().numpy()
        return torch.from_numpy(np.take(table, np.asarray(image))).permute(2, 0, 1)[None]
