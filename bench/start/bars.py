"""A bar chart, as a PNG."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH = 900
ROW = 34
MARGIN = 24
LABELS = 220
INK, GREY, BLUE = "#202124", "#9aa0a6", "#1a73e8"


def draw(path: Path, title: str, values: Mapping[str, float], ours: str = "our") -> None:
    """Draw one horizontal bar a value, in seconds.

    Args:
        ours: what the labels of the bars in colour contain.
    """
    font = ImageFont.load_default(16)
    picture = Image.new("RGB", (WIDTH, 2 * MARGIN + ROW * (len(values) + 1)), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((MARGIN, MARGIN), title, INK, font)
    scale = (WIDTH - LABELS - 4 * MARGIN) / max(values.values())
    for row, (label, value) in enumerate(values.items(), start=1):
        top = MARGIN + ROW * row
        pen.text((MARGIN, top + 6), label, INK, font)
        end = LABELS + value * scale
        pen.rectangle((LABELS, top + 4, end, top + ROW - 6), BLUE if ours in label else GREY)
        pen.text((end + 8, top + 6), f"{value:.2f} s", INK, font)
    picture.save(path, optimize=True)
