"""What an edit takes on a GPU, beside diffusers' own pipeline with the same weights and the limit of arithmetic.

    python -m bench.gpu [--models DIR] [--runs dense,dense+compile,dense-fp8,stock] [--measure load,edits] [--tiny]

Writes a random model of the published sizes (30 GB) where DIR has none, then measures each way of running it in a
process of its own and prints every figure as soon as it is known, and at the end tables. All of it is appended to
`bench/RESULTS.md`, or to the file of `--results`, line by line: what is cut short leaves what was measured. `--tiny`
appends only where a file is named. After `--minutes` what is running is stopped, and the rest is left out.

A run is a backend, with `+compile` for compiled blocks, `+torch` for none of Triton's kernels, `+fused` for the
engine's fused product of queries, keys and values, and another attention than PyTorch chooses: `+cudnn` for cuDNN's
first, `+flash` for none of cuDNN's at all. What a machine cannot run is named and left out. The tokenizer makes a token
of each byte, so that the text is some 200 tokens longer than with the published words. `--tiny` tries the whole of it
with a tiny model on whatever there is.

What is measured, each by itself or several with commas:

- load: a load from a cold page cache (not with `--warm`) and from a warm one. Each of the others begins with a load.
- memory: what is taken of the device after the warm-up, by PyTorch and outside of it.
- edits: the first edit, and the median of others with its steps and stages.
- length: an edit whose text has another length than any before it.
- profile: the kernels of one step, by what they are for.
- seed: two runs of one request with one seed, and how far apart their pictures are.

On a card that `python -m bench.predict` knows, what was measured is also printed over what was predicted.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.gpu import full_size
from bench.gpu.figures import SAID, TOLD, Figures, timed, used_gb
from bench.gpu.report import Report, beside_prediction, tables
from bench.gpu.run import MEASURES, USUAL, why_not
from bench.predict.compared import this_card
from qwen_edit.store.catalog import CHECKPOINTS, LIGHTNING, Checkpoint
from qwen_edit.svdq.checkpoint import read_header

CHECKOUT = Path(__file__).parents[2]
RESULTS = CHECKOUT / "bench" / "RESULTS.md"
RUNS = "dense,stock,dense+flash,dense+compile,dense-fp8+compile,dense-fp8,nunchaku"
"""Each decides a default, by its step beside that of `dense`: `+flash` the attention, `+compile` QWEN_EDIT_COMPILE,
`dense-fp8` whether `auto` takes it, with the compiler or without, and `nunchaku` whether `auto` takes int4 on the card.
`stock` decides nothing: it is what the others are compared with. The rules: docs/architecture.md, "Waiting for a GPU".
"""

STEPS = 8
PRODUCTS = 10
FREE_GB = 31
"""Of disk, for the base model and one checkpoint; another takes 13 more."""


def main() -> None:
    """Write the model, measure, print."""
    options = parse(sys.argv[1:])
    deadline = time.monotonic() + 60 * options.minutes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        sys.exit("no CUDA device is here; try the benchmark itself with --tiny")
    report = Report(options.results or (None if options.tiny else RESULTS))
    report.heading(f"python -m bench.gpu {shlex.join(sys.argv[1:])}".strip())
    rates = matrix_rates(device, 256 if options.tiny else 8192)
    report.figures("matrix rates, TFLOP/s", rates)
    options.models.mkdir(parents=True, exist_ok=True)
    checkpoints = CHECKPOINTS if options.checkpoints == "both" else (LIGHTNING,)
    _write(options.models, checkpoints, device, report, tiny=options.tiny)
    if device == "cuda":
        torch.cuda.empty_cache()  # the memory is for the processes that follow
    results = _measure(options, device, deadline, report)
    for line in tables(results, read_header(options.models / LIGHTNING.path), rates):
        report.line(line)
    card = this_card()
    if card is not None and not options.tiny and options.side == full_size.SIDE:
        for line in beside_prediction(results, card, options.steps):
            report.line(line)
    report.line("")


def matrix_rates(device: str, side: int) -> Figures:
    """TFLOP/s of a product of two random square matrices, over ten products: in bfloat16, and in fp8 where it runs."""
    left, right = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    rates = {"bf16": _rate(lambda: left @ right, side, device)}
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device=device)
        left8, right8 = left.to(torch.float8_e4m3fn), right.T.contiguous().to(torch.float8_e4m3fn).T
        rates["fp8"] = _rate(
            lambda: torch._scaled_mm(left8, right8, one, one, out_dtype=torch.bfloat16, use_fast_accum=True),
            side,
            device,
        )
    return rates


def drop_from_page_cache(models: Path) -> None:
    """Let the next read of every file come from the disk."""
    os.sync()
    for path in models.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _rate(product: Callable[[], object], side: int, device: str) -> float:
    for _ in range(3):
        product()
    seconds = timed(device, lambda: [product() for _ in range(PRODUCTS)])
    return 2 * side**3 * PRODUCTS / seconds / 1e12


def _write(models: Path, checkpoints: Sequence[Checkpoint], device: str, report: Report, *, tiny: bool) -> None:
    missing = tuple(checkpoint for checkpoint in checkpoints if not (models / checkpoint.path).is_file())
    if not missing:
        return
    needed = 0 if tiny else (FREE_GB + 13 * (len(missing) - 1)) * 10**9
    if (free := shutil.disk_usage(models).free) < needed:
        sys.exit(f"{models} has {free / 1e9:.0f} GB free, and the model takes {needed / 1e9:.0f} GB")
    started = time.perf_counter()
    full_size.write(models, full_size.tiny() if tiny else full_size.full(), missing, torch.device(device))
    size = sum(path.stat().st_size for path in models.rglob("*") if path.is_file())
    report.figures("written", {"GB": size / 1e9, "seconds": time.perf_counter() - started})


def _measure(options: argparse.Namespace, device: str, deadline: float, report: Report) -> dict[str, Figures]:
    """The figures of each run, and before them of the first one's load from a cold page cache."""
    results: dict[str, Figures] = {}
    first, *_ = runs = options.runs.split(",")
    measures = options.measure.split(",")
    if "load" in measures and not options.warm:
        drop_from_page_cache(options.models)
        results[f"{first}, cold"] = _run(options, first, device, deadline, report, "load")
    for run in runs:
        results[run] = _run(options, run, device, deadline, report, options.measure)
    return results


def _run(options: argparse.Namespace, run: str, device: str, deadline: float, report: Report, measures: str) -> Figures:
    """Measure in a process of its own, and show what it tells as it tells it."""
    if (left := deadline - time.monotonic()) <= 0:
        report.line(f"- {run}: left out, the time is up")
        return {}
    arguments = [run, "--models", str(options.models), "--device", device, "--side", str(options.side)]
    arguments += [
        "--others",
        str(used_gb()),
        "--steps",
        str(options.steps),
        "--repeats",
        str(options.repeats),
        "--measure",
        measures,
    ]
    if options.profile:
        arguments += ["--profile", str(options.profile / f"{run.replace('+', '-')}.txt")]
    command = [sys.executable, "-m", "bench.gpu.run", *arguments]
    figures: Figures = {}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=CHECKOUT) as process,
    ):
        end = threading.Timer(left, process.kill)
        end.start()
        for line in process.stdout or ():
            if line.startswith(SAID):
                report.line(line.removeprefix(SAID).rstrip())
            elif line.startswith(TOLD):
                told = json.loads(line.removeprefix(TOLD))
                if not figures:
                    told["ready"] = left - (deadline - time.monotonic())
                figures |= told
                report.figures(f"{run}, {measures}" if measures == "load" else run, told)
        end.cancel()
        if process.wait():
            errors.seek(0)
            report.line(f"- {run}: {fault_of(errors.read())}")
    return figures


def fault_of(errors: str) -> str:
    """The line of a process's stderr that says why it ended: the error of the last traceback, or the last line.

    Some libraries say more behind a traceback, as Python ends.
    """
    _, traceback, rest = errors.rpartition("Traceback (most recent call last):\n")
    lines = [line for line in rest.splitlines() if line.strip() and not line.startswith(" ")]
    if not lines:
        return "was stopped"
    return lines[0] if traceback else lines[-1]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line.

    Raises:
        SystemExit: it cannot be read, or asks for a run or a measure that does not exist.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "qwen-edit-full-size")
    parser.add_argument("--runs", default=RUNS)
    parser.add_argument("--checkpoints", choices=("lightning", "both"), default="lightning", help="which are written")
    parser.add_argument("--side", type=int, default=full_size.SIDE, help="pixels of the picture's sides")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--repeats", type=int, default=3, help="edits after the first one")
    parser.add_argument("--warm", action="store_true", help="leave out the load from a cold page cache")
    parser.add_argument("--minutes", type=float, default=60, help="after which what is not measured is left out")
    parser.add_argument("--profile", type=Path, help="a folder for a table of each run's kernels")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--measure", default=USUAL, help=f"of {', '.join(MEASURES)} (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="the file that is appended to (default: bench/RESULTS.md)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.measure.split(",") if name not in MEASURES]:
        parser.error(f"--measure has {unknown[0]!r}, expected some of {', '.join(MEASURES)}")
    for run in options.runs.split(","):
        if fault := why_not(run):
            parser.error(f"--runs has {run!r}, {fault}")
    return options


if __name__ == "__main__":
    main()
