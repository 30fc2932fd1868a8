"""The handful of edits that the demo model knows: exact targets, and the words that ask for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Rec. 601, as Pillow's mode L."""

_Matrix = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Edit:
    """`clip(matrix · rgb + offset)` on pixels in 0 … 1, and the phrases that mean it.

    `phrases` are trained on, in many sentences; `held_out` are whole prompts that training never sees.
    """

    name: str
    matrix: _Matrix
    offset: tuple[float, float, float]
    phrases: tuple[str, ...]
    held_out: tuple[str, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """The exact target of pixels [..., 3, height, width] in 0 … 1."""
        matrix, offset = torch.tensor(self.matrix), torch.tensor(self.offset)
        mixed = torch.einsum("oc,...chw->...ohw", matrix, pixels) + offset[:, None, None]
        return mixed.clamp(0, 1)


def _gains(red: float, green: float, blue: float) -> _Matrix:
    return ((red, 0.0, 0.0), (0.0, green, 0.0), (0.0, 0.0, blue))


def _of_luma(red: float, green: float, blue: float) -> _Matrix:
    return tuple((LUMA[0] * gain, LUMA[1] * gain, LUMA[2] * gain) for gain in (red, green, blue))


_EDITS = (
    Edit(
        "keep",
        _gains(1, 1, 1),
        (0, 0, 0),
        ("keep {it} as it is", "leave {it} alone", "do not change {it}", "change nothing", "keep {it} unchanged",
         "leave {it} as it was", "return {it} unchanged", "do nothing"),
        ("Leave the photo as it is", "please do not change anything"),
    ),
    Edit(
        "black and white",
        _of_luma(1, 1, 1),
        (0, 0, 0),
        ("make {it} black and white", "turn {it} into a black and white photo", "convert {it} to grayscale",
         "make {it} monochrome", "remove the colors from {it}", "{it} in black and white", "make {it} gray",
         "desaturate {it}", "a grayscale version of {it}"),
        ("Convert the photo to black and white", "please turn it into grayscale"),
    ),
    Edit(
        "invert",
        _gains(-1, -1, -1),
        (1, 1, 1),
        ("invert the colors", "invert {it}", "make {it} a negative", "turn {it} into a photo negative",
         "invert the colors of {it}", "swap light and dark in {it}", "show {it} as a film negative",
         "inverted colors for {it}"),
        ("Invert all colors in the picture", "please make a negative of it"),
    ),
    Edit(
        "warmer",
        _gains(0.8, 1, 0.55),
        (0.2, 0, 0),
        ("make {it} warmer", "give {it} a warm tone", "warm {it} up", "add warmth to {it}", "warmer colors for {it}",
         "make the light in {it} warm", "a warmer white balance for {it}"),
        ("Make the colors of the photo warmer", "please give it warm light"),
    ),
    Edit(
        "brighter",
        _gains(0.7, 0.7, 0.7),
        (0.3, 0.3, 0.3),
        ("make {it} brighter", "brighten {it}", "brighten {it} up", "increase the brightness of {it}",
         "lighten {it}", "make {it} lighter", "a brighter version of {it}", "more brightness for {it}"),
        ("Increase the brightness", "please brighten the photo a lot"),
    ),
    Edit(
        "sepia",
        _of_luma(0.6, 0.55, 0.4),
        (0.3, 0.2, 0.1),
        ("turn {it} into a sepia photo", "make {it} sepia", "give {it} a sepia tone", "apply a sepia filter to {it}",
         "{it} in sepia", "a vintage sepia version of {it}", "convert {it} to sepia"),
        ("Give the photo a vintage sepia tone", "please apply sepia to it"),
    ),
    Edit(
        "blue",
        _of_luma(0.55, 0.75, 0.55),
        (0.0, 0.1, 0.45),
        ("paint everything blue", "make {it} blue", "turn everything in {it} blue", "tint {it} blue",
         "paint {it} in blue", "give {it} a blue tint", "color {it} blue", "make everything blue"),
        ("Tint the photo in blue", "please paint all of it blue"),
    ),
)  # fmt: skip

EDITS: Mapping[str, Edit] = MappingProxyType({edit.name: edit for edit in _EDITS})
"""Every edit by its name, the one that changes nothing first."""

OTHERS = (
    "make it snow", "add a hat", "turn the picture into a watercolor painting", "remove the background",
    "make her smile", "add a rainbow to the sky", "put a cat on the table", "make it look like winter", "zoom in",
    "a portrait in the style of van Gogh", "replace the car with a bicycle", "write hello on the wall", "hello", "x",
    "make the cat sleep", "what is this?", "remove the text", "add sunglasses", "turn it into a cartoon", "sharpen it",
)  # fmt: skip
"""Prompts that the demo cannot follow; it learns to leave the picture alone on them."""

_THINGS = ("it", "the picture", "the photo", "this photo", "the image", "this image", "this picture", "the whole photo")
_FRAMES = ("{}", "please {}", "{} please", "{}, please", "can you {}", "{} for me", "now {}", "I want you to {}")


def sentences(edit: Edit) -> tuple[str, ...]:
    """Every prompt that training uses for an edit: each phrase of each thing, framed in turn, some with capitals."""
    plain = [phrase.replace("{it}", thing) for phrase in edit.phrases for thing in _THINGS]
    framed = [_FRAMES[i % len(_FRAMES)].format(text) for i, text in enumerate(dict.fromkeys(plain))]
    spoken = [text[0].upper() + text[1:] if i % 3 else text for i, text in enumerate(framed)]
    all_of_them = dict.fromkeys([*plain, *(text + "." if i % 5 == 0 else text for i, text in enumerate(spoken))])
    return tuple(text for text in all_of_them if text not in edit.held_out)
