"""What an edit takes on a GPU, beside diffusers' own pipeline with the same weights and the limit of arithmetic.

    python -m bench.gpu [--models DIR] [--runs dense,dense+compile,dense-fp8,stock] [--tiny]

Writes a random model of the published sizes (30 GB) where DIR has none, then measures each way of running it in a
process of its own and prints every figure as soon as it is known, and at the end the tables for `bench/RESULTS.md`.
A run is a backend, with `+compile` for compiled blocks, `+fused` for the engine's fused product of queries, keys and
values, and another attention than PyTorch chooses: `+cudnn` for cuDNN's in the transformer, `+flash` for none of
cuDNN's at all. What a machine cannot run is named and left out. The tokenizer makes a token of each byte, so that the
text is some 200 tokens longer than with the published words. `--tiny` tries the whole of it with a tiny model on
whatever there is.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import torch

from bench.gpu import full_size
from bench.gpu.run import STAGES, TOLD, Figures, timed
from qwen_edit.store.catalog import CHECKPOINTS, LIGHTNING, Checkpoint
from qwen_edit.svdq.checkpoint import CheckpointInfo, read_header

CHECKOUT = Path(__file__).parents[2]
RUNS = "dense,stock,dense+flash,dense+compile,dense-fp8+compile,dense-fp8,nunchaku"
STEPS = 8
PRODUCTS = 10
FREE_GB = 31
"""Of disk, for the base model and one checkpoint; another takes 13 more."""


def main() -> None:
    """Write the model, measure, print."""
    options = _options()
    deadline = time.monotonic() + 60 * options.minutes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        sys.exit("no CUDA device is here; try the benchmark itself with --tiny")
    print(f"{_machine()}\n{_versions()}\n", flush=True)
    rates = matrix_rates(device, 256 if options.tiny else 8192)
    _show("matrix rates, TFLOP/s", rates)
    options.models.mkdir(parents=True, exist_ok=True)
    checkpoints = CHECKPOINTS if options.checkpoints == "both" else (LIGHTNING,)
    _write(options.models, checkpoints, device, tiny=options.tiny)
    info = read_header(options.models / LIGHTNING.path)
    results: dict[str, Figures] = {}
    first, *_ = runs = options.runs.split(",")
    if not options.warm:
        drop_from_page_cache(options.models)
        results[f"{first}, cold"] = _run(options, first, device, deadline, "--load-only")
    for run in runs:
        results[run] = _run(options, run, device, deadline)
    print("\n".join(["", *report(results, info, rates)]))


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


def flops(info: CheckpointInfo, image_tokens: float, text_tokens: float) -> tuple[float, float]:
    """Arithmetic of one pass of the transformer's blocks, in TFLOP: of the linear layers, and of the attention.

    A token of either stream passes 24 d² multiplications and additions a layer: 12 d² weights of queries, keys, values,
    output and MLP. Attention over n tokens takes 4 n² d. The layers outside of the blocks are under 0.1 %.
    """
    width = info.config["num_attention_heads"] * info.config["attention_head_dim"]
    tokens = image_tokens + text_tokens
    linear = 24 * width**2 * tokens * info.num_layers
    return linear / 1e12, 4 * tokens**2 * width * info.num_layers / 1e12


def step_limit(run: str, figures: Figures, info: CheckpointInfo, rates: Figures) -> float:
    """Seconds that a step would take if all of it ran at the measured rates; fp8 is for the linear layers alone."""
    linear, attention = flops(info, figures["image tokens"], figures["text tokens"])
    fast = rates.get("fp8", rates["bf16"]) if "fp8" in run else rates["bf16"]
    return linear / fast + attention / rates["bf16"]


def report(results: dict[str, Figures], info: CheckpointInfo, rates: Figures) -> Iterator[str]:
    """The tables of what was measured, in seconds."""
    yield f"{_machine()} {_versions()}"
    yield ""
    yield "| | from process start to ready | loading | reading | imports without torch |"
    yield "|---|---|---|---|---|"
    for run, figures in results.items():
        if "load" in figures:
            yield _row(run, *(figures.get(name) for name in ("ready", "load", "read", "imports")))
    stock = results.get("stock", {})
    edited = {run: figures for run, figures in results.items() if "step" in figures}
    yield ""
    limits = ", ".join(f"{rate:.4g} TFLOP/s in {name}" for name, rate in rates.items())
    yield f"Limit: {limits}, measured in the same run."
    yield ""
    yield (
        "| run | a step | × limit | stock ÷ it | first edit | an edit | stock ÷ it | other length | same again "
        "| held GB | peak GB | taken GB |"
    )
    yield "|" + "---|" * 12
    for run, figures in edited.items():
        yield _row(
            run,
            figures["step"],
            figures["step"] / step_limit(run, figures, info, rates),
            _ratio(stock.get("step"), figures["step"]),
            figures["first edit"],
            figures["edit"],
            _ratio(stock.get("edit"), figures["edit"]),
            figures.get("other length"),
            figures.get("edit again"),
            figures.get("held GB"),
            figures.get("peak GB"),
            figures.get("taken GB"),
        )
    yield ""
    yield f"| an edit by stages | {' | '.join(STAGES)} | text tokens |"
    yield "|---|" + "---|" * (len(STAGES) + 1)
    for run, figures in edited.items():
        yield _row(run, *(figures.get(stage) for stage in STAGES), figures["text tokens"])


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


def _write(models: Path, checkpoints: Sequence[Checkpoint], device: str, *, tiny: bool) -> None:
    missing = tuple(checkpoint for checkpoint in checkpoints if not (models / checkpoint.path).is_file())
    if not missing:
        return
    needed = 0 if tiny else (FREE_GB + 13 * (len(missing) - 1)) * 10**9
    if (free := shutil.disk_usage(models).free) < needed:
        sys.exit(f"{models} has {free / 1e9:.0f} GB free, and the model takes {needed / 1e9:.0f} GB")
    started = time.perf_counter()
    full_size.write(models, full_size.tiny() if tiny else full_size.full(), missing, torch.device(device))
    if device == "cuda":
        torch.cuda.empty_cache()  # the memory is for the processes that follow
    size = sum(path.stat().st_size for path in models.rglob("*") if path.is_file())
    _show("written", {"GB": size / 1e9, "seconds": time.perf_counter() - started})


def _run(options: argparse.Namespace, run: str, device: str, deadline: float, *more: str) -> Figures:
    """Measure in a process of its own, and show what it tells as it tells it."""
    if (left := deadline - time.monotonic()) <= 0:
        print(f"{run}: left out, the time is up", flush=True)
        return {}
    arguments = [run, "--models", str(options.models), "--device", device, "--side", str(options.side)]
    arguments += ["--steps", str(options.steps), "--repeats", str(options.repeats), *more]
    if options.profile and not more:
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
            if line.startswith(TOLD):
                told = json.loads(line.removeprefix(TOLD))
                if not figures:
                    told["ready"] = left - (deadline - time.monotonic())
                figures |= told
                _show(" ".join((run, *more)), told)
        end.cancel()
        if process.wait():
            errors.seek(0)
            print(f"{run}: {(errors.read().strip() or 'was stopped').splitlines()[-1]}", flush=True)
    return figures


def _show(what: str, figures: Figures) -> None:
    print(f"{what}: {', '.join(f'{name} {value:.4g}' for name, value in figures.items())}", flush=True)


def _row(name: str, *values: float | None) -> str:
    return f"| {name} | {' | '.join('–' if value is None else f'{value:.4g}' for value in values)} |"


def _ratio(stock: float | None, ours: float) -> float | None:
    return stock / ours if stock else None


def _machine() -> str:
    cores = f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}"
    if not torch.cuda.is_available():
        return f"No GPU; {cores}."
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return f"{torch.cuda.get_device_name()}, {memory:.0f} GB; {cores}."


def _versions() -> str:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers"))
    return f"Python {platform.python_version()}, {packages}, CUDA {torch.version.cuda}, cuDNN {_cudnn()}."


def _cudnn() -> int | None:
    return torch.backends.cudnn.version() if torch.cuda.is_available() else None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "qwen-edit-full-size")
    parser.add_argument("--runs", default=RUNS)
    parser.add_argument("--checkpoints", choices=("lightning", "both"), default="lightning", help="which are written")
    parser.add_argument("--side", type=int, default=1024, help="pixels of the picture's sides")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--repeats", type=int, default=3, help="edits after the first one")
    parser.add_argument("--warm", action="store_true", help="leave out the load from a cold page cache")
    parser.add_argument("--minutes", type=float, default=60, help="after which what is not measured is left out")
    parser.add_argument("--profile", type=Path, help="a folder for a table of each run's kernels")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
