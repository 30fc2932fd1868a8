"""A finished denoising step."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Step:
    """The step's number, from 1, how many there are, and a way to see how far the picture is.

    `preview` costs a few milliseconds and a wait for the device, so call it seldom, and only from within `on_step`.
    """

    number: int
    steps: int
    preview: Callable[[], Image.Image]


OnStep = Callable[[Step], None]
