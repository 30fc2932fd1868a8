"""What to run on a machine with a GPU, the most valuable first, each in under nine minutes."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

MINUTES = 9
RESULTS = "../RESULTS.md"
"""Beside the checkout, for which nothing is written into that."""

SWITCHED = ("dense", "dense+torch")
"""Runs with kernels of our own, and without them."""

SETTING_UP = (
    "cd qwen-edit-kit/checkout",
    "python3 -m pip install --quiet --no-index --no-deps --no-compile --target ../site ../wheels/*.whl",
    "export PYTHONPATH=$PWD/../site",
)
"""Once after the archive is unpacked; the first and the last line in every new shell."""


@dataclass(frozen=True)
class Command:
    """A program of the checkout with its arguments, and what its figures decide."""

    decides: str
    module: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        limit = "" if self.module == "bench.gpu" else f"timeout {60 * MINUTES} "
        return f"{limit}python3 -m {self.module} {shlex.join(self.arguments)}"


def commands() -> list[Command]:
    """All of them, in the order in which they are worth a GPU's minutes."""
    return [
        Command("whether anything runs at all", "pytest", ("-m", "gpu", "-W", "default", *gpu_tests())),
        _bench("the attention, and seconds of an edit; writes the model first", "dense,dense+flash", "edits,length"),
        _bench("Triton's kernels", ",".join(SWITCHED), "edits"),
        _bench("`auto` with fp8, and compiled blocks under it", "dense-fp8,dense-fp8+compile", "edits"),
        _bench("compiled blocks, and what diffusers' own pipeline takes", "dense+compile,stock", "edits"),
        _bench("the readers, the pinned ring, the expansion beside them", "dense", "load", warm=False),
        _bench("the headroom of the memory plan", "dense,dense-fp8", "memory"),
        _bench("the warm-up's lengths, and cuDNN for the encoders", "dense,dense+flash,dense+cudnn", "length"),
        _bench("where the next kernel is worth most", "dense,dense-fp8", "profile"),
        _bench("what the contract says of a seed", "dense,dense-fp8", "seed"),
    ]


def gpu_tests() -> list[str]:
    """The files of tests that want a GPU. The others import packages that such a machine lacks."""
    mark = re.compile(r"^(@|pytestmark = )pytest\.mark\.gpu$", re.MULTILINE)
    found = (path for path in (ROOT / "tests").rglob("test_*.py") if mark.search(path.read_text("utf-8")))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def lines() -> Iterator[str]:
    """All that is to be typed, in order, with comments."""
    yield "# Once, where the archive was unpacked; the first and the last line in every new shell:"
    yield from SETTING_UP
    for number, command in enumerate(commands(), start=1):
        yield f"# {number}. Decides: {command.decides}."
        yield str(command)


def _bench(decides: str, runs: str, measure: str, *, warm: bool = True) -> Command:
    arguments = ["--runs", runs, "--measure", measure, "--minutes", str(MINUTES), "--results", RESULTS]
    return Command(decides, "bench.gpu", (*arguments, *(["--warm"] if warm else [])))
