"""Of how many pixels a result is."""

import math

TARGET_AREA = 1024 * 1024
"""Pixels of a result whose size was left open, and of the reference that the model sees: what it was trained on."""

_OPEN_SIDE_STEP = 32
"""Pixels. `QwenImageEditPipeline.calculate_dimensions` rounds the sides that it chooses to this."""

_ASKED_SIDE_STEP = 16
"""Pixels. One token of the transformer: 2 × 2 latent pixels, of 8 × 8 pixels each."""


def size(width: int | None, height: int | None, picture_size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the result.

    Args:
        width: as asked for, in pixels; None with `height` leaves both open.
        height: likewise.
        picture_size: width and height of the picture to edit.
    """
    if width is None or height is None:
        return default_size(picture_size)
    return _rounded(width, _ASKED_SIDE_STEP), _rounded(height, _ASKED_SIDE_STEP)


def warnings(width: int | None, height: int | None, chosen: tuple[int, int]) -> tuple[str, ...]:
    """A sentence where the size that was chosen is not the one that was asked for; see `size`."""
    if width is None or (width, height) == chosen:
        return ()
    return (
        f"{width} × {height} was asked for: {chosen[0]} × {chosen[1]} runs instead, "
        f"because sides are multiples of {_ASKED_SIDE_STEP}",
    )


def default_size(picture_size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of about `TARGET_AREA` in the picture's shape, as `QwenImageEditPipeline` chooses them."""
    ratio = picture_size[0] / picture_size[1]
    width = math.sqrt(TARGET_AREA * ratio)
    return _rounded(width, _OPEN_SIDE_STEP), _rounded(width / ratio, _OPEN_SIDE_STEP)


def _rounded(side: float, step: int) -> int:
    return round(side / step) * step
