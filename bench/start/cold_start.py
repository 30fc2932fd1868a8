"""From process start to a loaded model: the imports, the bytes, the usual way, and ours.

Run from the checkout: `python -m bench.start.cold_start [--gigabytes 4] [--rounds 5] [--plot FILE]`. It writes a random
model of the published layer names, shapes and dtypes with fewer blocks, and starts each way in fresh processes in turn.
Cold means that the pages of the weights were dropped from the page cache; those of Python and its packages stay.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.gpu import full_size
from bench.start.bars import draw
from bench.start.cold_start_program import WAYS, weight_files
from qwen_edit.store.catalog import CHECKPOINTS

FOLDER = Path(__file__).parents[2] / "models" / "cold_start"
VOCABULARY = 16384
VISION_LAYERS = 8
FULL_VISION_LAYER = 7
LANGUAGE_LAYERS_PER_GB = 1.1
BLOCKS_PER_GB = 2.1
"""So that checkpoint and text encoder share the bytes as the published ones do: 45 to 55."""


@dataclass(frozen=True)
class Start:
    """Seconds from the process's start until all was there, and the peak of its resident memory in bytes."""

    seconds: float
    peak: int


def main() -> None:
    """Write the model, measure, print a table, draw a plot."""
    options = _options()
    models = _written(FOLDER, options.gigabytes)
    files = weight_files(models)
    size = sum(path.stat().st_size for path in files)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}")
    print(f"{size / 1e9:.2f} GB in {len(files)} files, median of {options.rounds}, load {os.getloadavg()[0]:.1f}\n")
    bars: dict[str, float] = {}
    for state in ("cold", "warm"):
        starts = _starts(models, files, options.rounds, cold=state == "cold")
        medians = {way: statistics.median(start.seconds for start in each) for way, each in starts.items()}
        _print(state, medians, starts, size)
        bars |= {f"{state}: {way}": median for way, median in medians.items()}
    if options.plot:
        draw(options.plot, title(size), bars)


def title(size: int) -> str:
    """Of the plot, which is easily taken for one of a GPU."""
    return f"Seconds from process start to {size / 1e9:.1f} GB of weights in CPU memory (no GPU)"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="a PNG file to draw the medians into")
    return parser.parse_args()


def _written(models: Path, gigabytes: float) -> Path:
    """A model of about that many GB, kept for the next run."""
    done = models / f"{gigabytes:g}-gb"
    if not done.exists():
        full_size.write(models, _scaled(gigabytes), CHECKPOINTS[:1], torch.device("cpu"))
        done.touch()
    return models


def _scaled(gigabytes: float) -> full_size.Size:
    full = full_size.full()
    language = {
        "num_hidden_layers": max(1, round(gigabytes * LANGUAGE_LAYERS_PER_GB)),
        "vocab_size": VOCABULARY,
    }
    vision = {"depth": VISION_LAYERS, "fullatt_block_indexes": [FULL_VISION_LAYER]}
    text_encoder = {
        **full.text_encoder,
        "text_config": {**full.text_encoder["text_config"], **language},
        "vision_config": {**full.text_encoder["vision_config"], **vision},
    }
    blocks = max(1, round(gigabytes * BLOCKS_PER_GB))
    return full_size.Size({**full.transformer, "num_layers": blocks}, text_encoder, full.vae)


def _starts(models: Path, files: list[Path], rounds: int, *, cold: bool) -> dict[str, list[Start]]:
    """Of each way in each round, one after the other, after a round that is not counted."""
    starts: dict[str, list[Start]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):
        for way, each in starts.items():
            if cold:
                _drop(files)
            each.append(_start(way, models))
    return {way: each[1:] for way, each in starts.items()}


def _drop(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _start(way: str, models: Path) -> Start:
    """Until it prints its last line; what it takes to end is not counted."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "bench.start.cold_start_program", way, str(models)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with process:
        assert process.stdout is not None
        lines = [(line, time.perf_counter() - began) for line in process.stdout]
    assert process.returncode == 0, f"{way} ended with {process.returncode}"
    line, seconds = lines[-1]
    return Start(seconds, int(line))


def _print(state: str, medians: Mapping[str, float], starts: Mapping[str, list[Start]], size: int) -> None:
    longer = max(medians["our imports"], medians["plain reading"])
    print(f"| {state} | s, median (range) | peak of memory, × the weights | |")
    print("|---|---|---|---|")
    remarks = {
        "our imports": f"{medians['our imports'] / medians['plain imports']:.2f} × the plain imports",
        "plain reading": f"{size / medians['plain reading'] / 1e9:.2f} GB/s",
        "ours": f"{medians['ours'] / medians['usual']:.2f} × the usual way, "
        f"{medians['ours'] / longer:.2f} × the longer of imports and reading",
    }
    for way, median in medians.items():
        seconds = [start.seconds for start in starts[way]]
        peak = statistics.median(start.peak for start in starts[way]) / size
        spread = f"{median:.2f} ({min(seconds):.2f}–{max(seconds):.2f})"
        print(f"| {way} | {spread} | {peak:.2f} | {remarks.get(way, '')} |")
    print(flush=True)


if __name__ == "__main__":
    main()
