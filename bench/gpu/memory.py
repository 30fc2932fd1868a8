"""The documentation's table of cards, and every way in which each class of cards could run the model.

    python -m bench.gpu.memory

Computed from the architecture and the rows of `qwen_edit.machine.setup`; nothing is measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from qwen_edit.machine.backend import BackendName, Card
from qwen_edit.machine.engine import Engine
from qwen_edit.machine.gpu_memory import MemoryWay, ModelSizes, sizes_of
from qwen_edit.machine.setup import choose_setup, ways
from qwen_edit.settings import Backend, Settings
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, expected_tensors

TEXT_ENCODER_BYTES = 2 * (8_292_166_656 - 152_064 * 3_584)
"""Without `lm_head`, which is not read."""
VAE_BYTES = 2 * 126_892_531

FREE: Mapping[int, float] = {20: 20.6, 24: 23.1, 32: 33.2, 40: 41.8, 48: 47.1, 80: 84.4, 96: 101.0, 141: 149.0}
"""By the GB on the box: those that the smallest card of the class has free once CUDA has started."""

CAPABILITIES: Mapping[str, tuple[int, int]] = {
    "A100": (8, 0),
    "RTX 3090": (8, 6),
    "A10": (8, 6),
    "A40": (8, 6),
    "A6000": (8, 6),
    "RTX 4090": (8, 9),
    "L4": (8, 9),
    "L40": (8, 9),
    "L40S": (8, 9),
    "RTX 6000 Ada": (8, 9),
    "H100": (9, 0),
    "H200": (9, 0),
    "B200": (10, 0),
    "RTX 5090": (12, 0),
    "RTX PRO 6000": (12, 0),
}
"""By NVIDIA's list of compute capabilities."""

_AMPERE_AND_ADA_48 = ("A40", "A6000", "L40", "L40S", "RTX 6000 Ada")
_DENSE_80 = ("A100", "H100", "H200", "B200", "RTX PRO 6000")


@dataclass(frozen=True)
class Line:
    """Cards of the table that get the same answer, as in `CAPABILITIES`; `size` is a key of `FREE`."""

    label: str
    size: int
    cards: tuple[str, ...]
    backend: Backend = "auto"


LINES = (
    Line("24 GB: {cards}", 24, ("RTX 3090", "RTX 4090", "A10", "L4")),
    Line("40 GB: {cards}", 40, ("A100",)),
    Line("48 GB: {cards}", 48, _AMPERE_AND_ADA_48),
    Line("the same with {asked}", 48, _AMPERE_AND_ADA_48, "dense"),
    Line("80 GB and more: {cards}", 80, _DENSE_80),
    Line("from 48 GB and 8.9 on with {asked}", 48, ("L40", "L40S", "RTX 6000 Ada", *_DENSE_80[1:]), "dense-fp8"),
    Line("32 GB: {cards}, with {asked}", 32, ("RTX 5090",), "dense-fp8"),
)

_HEAD = """\
| GPU | backend | offload | while loading | an edit | waits in the host's memory |
|---|---|---|---|---|---|
"""


@cache
def real_checkpoint() -> CheckpointInfo:
    """What `read_header` finds in a real file, but for the order of the tensors and where they lie."""
    tensors = expected_tensors(CONFIG_DEFAULTS, rank=128)
    return CheckpointInfo("", CONFIG_DEFAULTS, 128, cast("Mapping[str, Any]", tensors), {})


@cache
def real_sizes(backend: BackendName) -> ModelSizes:
    """The sizes of the published model for a backend."""
    return sizes_of(backend, TEXT_ENCODER_BYTES, VAE_BYTES, real_checkpoint())


def card_table() -> str:
    """The table of the documentation, in Markdown: what runs on which GPU, and the GB that it takes.

    Raises:
        ModelUnavailable: a card of the table runs nothing.
        ValueError: cards of one line would not all run the same.
    """
    return _HEAD + "".join(_row(_label(line), way_of(line)) for line in LINES)


def _label(line: Line) -> str:
    return line.label.format(cards=", ".join(line.cards), asked=f"`QWEN_EDIT_BACKEND={line.backend}`")


def way_of(line: Line) -> MemoryWay:
    """The way that all cards of a line get, with the engine installed.

    Raises:
        ModelUnavailable: they run nothing.
        ValueError: they would not all run the same.
    """
    free = int(FREE[line.size] * 1e9)
    cards = [Card(name, CAPABILITIES[name], free, free) for name in line.cards]
    settings, engine = Settings(backend=line.backend), Engine("installed", None)
    found = {choose_setup(settings, card, engine, real_sizes)[1] for card in cards}
    if len(found) != 1:
        raise ValueError(f"the cards of {line.label!r} run in {len(found)} ways, expected one")
    (way,) = found
    assert way is not None
    return way


def _row(label: str, way: MemoryWay) -> str:
    offload = way.offload + (", VAE in tiles" if way.tiling else "")
    return f"| {label} | {way.backend} | {offload} | {_gb(way.load)} | {_gb(way.edit)} | {_gb(way.host)} |\n"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}" if size else "–"


def main() -> None:
    print(card_table())
    print("| way | least that a card has free, GB | cards whose memory it fits, by the GB on the box |\n|---|---|---|")
    for way in ways(real_sizes):
        name = f"{way.backend}, offload {way.offload}{', VAE in tiles' if way.tiling else ''}"
        fitting = [str(size) for size, free in FREE.items() if way.peak <= free * 1e9]
        print(f"| {name} | {_gb(way.peak)} | {', '.join(fitting)} |")


if __name__ == "__main__":
    main()
