"""What `bench.gpu` prints: each figure as it is known, and tables of all of them. A file gets the same lines.

The file is appended to line by line, so a run that is cut short leaves what it measured.
"""

import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import torch

from bench.gpu.figures import Figures
from bench.gpu.run import STAGES
from bench.predict.arithmetic import attention_flops, linear_flops, shape_of
from bench.predict.compared import predicted, ratios
from qwen_edit.machine.backend import Card
from qwen_edit.svdq.checkpoint import CheckpointInfo


class Report:
    """Prints lines, and appends them to a file where there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def heading(self, command: str) -> None:
        """Begin a section of the file: the command, the hardware and the versions."""
        self.line(f"## `{command}`")
        self.line("")
        self.line(f"{machine()} {versions()}")
        self.line("")

    def figures(self, what: str, figures: Figures) -> None:
        self.line(f"- {what}: {', '.join(f'{name} {value:.4g}' for name, value in figures.items())}")

    def line(self, line: str) -> None:
        print(line, flush=True)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def flops(info: CheckpointInfo, image_tokens: float, text_tokens: float) -> tuple[float, float]:
    """Arithmetic of one pass of the transformer's blocks, in TFLOP: of the linear layers, and of the attention."""
    shape = shape_of(info.config, image_tokens + text_tokens)
    return linear_flops(shape) / 1e12, attention_flops(shape) / 1e12


def step_limit(run: str, figures: Figures, info: CheckpointInfo, rates: Figures) -> float:
    """Seconds that a step would take if all of it ran at the measured rates; fp8 is for the linear layers alone."""
    linear, attention = flops(info, figures["image tokens"], figures["text tokens"])
    fast = rates.get("fp8", rates["bf16"]) if "fp8" in run else rates["bf16"]
    return linear / fast + attention / rates["bf16"]


def tables(results: Mapping[str, Figures], info: CheckpointInfo, rates: Figures) -> Iterator[str]:
    """The tables of what was measured, in seconds; those with nothing in them are left out."""
    loaded = {run: figures for run, figures in results.items() if "load" in figures}
    edited = {run: figures for run, figures in results.items() if "step" in figures}
    if loaded:
        yield ""
        yield "| | from process start to ready | loading | reading | imports without torch |"
        yield "|---|---|---|---|---|"
        for run, figures in loaded.items():
            yield row(run, *(figures.get(name) for name in ("ready", "load", "read", "imports")))
    if edited:
        yield from _edits(edited, info, rates)


def _edits(edited: Mapping[str, Figures], info: CheckpointInfo, rates: Figures) -> Iterator[str]:
    stock = edited.get("stock", {})
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
        yield row(
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
        yield row(run, *(figures.get(stage) for stage in STAGES), figures["text tokens"])


def beside_prediction(results: Mapping[str, Figures], card: Card, steps: int) -> Iterator[str]:
    """Measured over predicted, by `python -m bench.predict`; nothing for a card or a run that is not predicted."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    found = {
        run: ratios(figures, expected)
        for run, figures in results.items()
        if (expected := predicted(run, figures, card, cudnn, steps))
    }
    if not any(found.values()):
        return
    names = ("load", "step", "edit", "taken GB")
    yield ""
    yield f"| measured ÷ predicted | {' | '.join(names)} |"
    yield "|---|" + "---|" * len(names)
    for run, figures in found.items():
        yield row(run, *(figures.get(name) for name in names))


def row(name: str, *values: float | None) -> str:
    """A row of a table in Markdown."""
    return f"| {name} | {' | '.join('–' if value is None else f'{value:.4g}' for value in values)} |"


def machine() -> str:
    """The card and the cores."""
    cores = f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}"
    if not torch.cuda.is_available():
        return f"No GPU; {cores}."
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return f"{torch.cuda.get_device_name()}, {memory:.0f} GB; {cores}."


def versions() -> str:
    """Of what decides a figure."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers"))
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return f"Python {platform.python_version()}, {packages}, CUDA {torch.version.cuda}, cuDNN {cudnn}."


def _ratio(stock: float | None, ours: float) -> float | None:
    return stock / ours if stock else None
