"""Where the time of one step goes: its kernels by what they are for, from PyTorch's profiler.

On a GPU the time is that of the kernels, on a CPU that of the operations. Each belongs to the operation that started
it, and that to the norm or the rotation that it stands in. Compiled blocks hide these: their norms count as "other".
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from diffusers.models.transformers import transformer_qwenimage
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bench.gpu.figures import say, settle, tell

GROUPS = ("products", "attention", "norm", "rotary", "other")
HEAVIEST = 3
"""Operations of a group that are named."""

MARK = "step: "
"""What our own ranges begin with, so that no kernel is taken for one."""

OPERATIONS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm", "aten::linear"),
    "attention": (
        "aten::scaled_dot_product",
        "aten::_scaled_dot_product",
        "aten::_flash_attention",
        "aten::_efficient_attention",
        "aten::_cudnn_attention",
    ),
    "norm": ("aten::native_layer_norm", "aten::_fused_rms_norm", "aten::rms_norm", "aten::layer_norm"),
}
"""What the names of a group's operations begin with."""

Event = FunctionEvent
Spent = dict[str, dict[str, float]]
"""Milliseconds by group and operation."""


def measure_step(transformer: torch.nn.Module, edit: Callable[[], object], device: str, call: int) -> None:
    """Profile one call of the transformer in an edit, tell the milliseconds of each group, and say them as a table.

    Args:
        edit: one edit.
        call: which of the edit's calls of the transformer, from 0 on; later ones are warm.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    profiler = profile(activities=activities)
    begun = ended = 0

    def begin(*_: object) -> None:
        nonlocal begun
        if begun == call:
            settle(device)
            profiler.start()
        begun += 1

    def end(*_: object) -> None:
        nonlocal ended
        if ended == call:
            settle(device)
            profiler.stop()
        ended += 1

    with marked(transformer), ExitStack() as hooks:
        hooks.callback(transformer.register_forward_pre_hook(begin).remove)
        hooks.callback(transformer.register_forward_hook(end).remove)
        edit()
    spent = by_operation(list(profiler.events() or ()), device)
    totals = {group: sum(spent[group].values()) for group in GROUPS}
    tell(**{f"{group} ms": milliseconds for group, milliseconds in totals.items()})
    for line in ("", *table(spent), ""):
        say(line)


def table(spent: Spent) -> Iterator[str]:
    """Milliseconds of a step in Markdown, by group, with the heaviest operations of each."""
    whole = sum(sum(operations.values()) for operations in spent.values()) or 1.0
    yield "| of a step | ms | share | heaviest |"
    yield "|---|---|---|---|"
    for group in GROUPS:
        total = sum(spent[group].values())
        most = sorted(spent[group].items(), key=lambda item: -item[1])[:HEAVIEST]
        heaviest = ", ".join(f"{name} {ms:.3g}" for name, ms in most)
        yield f"| {group} | {total:.4g} | {total / whole:.0%} | {heaviest or '–'} |"


def by_operation(events: list[Event], device: str) -> Spent:
    """What was spent, from the events of a profile."""
    spent: Spent = {group: defaultdict(float) for group in GROUPS}
    for event in events:
        if event.device_type.name == "CPU":
            spent[group_of(event)][event.name.removeprefix(MARK)] += _own_time(event, device) / 1000
    if device == "cuda":
        kernels = [event for event in events if event.device_type.name == "CUDA" and not event.name.startswith(MARK)]
        all_of_it = sum(event.time_range.elapsed_us() for event in kernels) / 1000
        found = sum(sum(operations.values()) for operations in spent.values())
        # A kernel that no operation started; a negative rest would be a kernel that was counted twice.
        spent["other"]["started outside of operations"] += all_of_it - found
    return spent


def group_of(event: Event) -> str:
    """The group of the innermost thing around an event that has one; within attention all is attention."""
    found: list[str] = []
    around: Event | None = event
    while around is not None:
        if around.name.startswith(MARK):
            found.append(around.name.removeprefix(MARK))
        found += (group for group, names in OPERATIONS.items() if around.name.startswith(names))
        around = around.cpu_parent
    return "attention" if "attention" in found else (found or ["other"])[0]


@contextmanager
def marked(transformer: torch.nn.Module) -> Iterator[None]:
    """Put a range around each norm, each rotation and each product of the engine, which has operations of its own."""
    with ExitStack() as undo:
        for module in transformer.modules():
            if group := _group_of_module(module):
                _mark(module, group, undo)
        rotate = transformer_qwenimage.apply_rotary_emb_qwen

        @wraps(rotate)
        def rotated(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the stock function
            with record_function(f"{MARK}rotary"):
                return rotate(*args, **kwargs)

        transformer_qwenimage.apply_rotary_emb_qwen = rotated
        undo.callback(setattr, transformer_qwenimage, "apply_rotary_emb_qwen", rotate)
        yield


def _group_of_module(module: torch.nn.Module) -> str | None:
    name = type(module).__name__
    if "RMSNorm" in name or name == "LayerNorm":
        return "norm"
    return "products" if "Linear" in name and type(module).__module__.startswith("nunchaku") else None


def _mark(module: torch.nn.Module, group: str, undo: ExitStack) -> None:
    ranges: list[record_function] = []

    def enter(*_: object) -> None:
        ranges.append(record_function(f"{MARK}{group}"))
        ranges[-1].__enter__()

    def leave(*_: object) -> None:
        ranges.pop().__exit__(None, None, None)

    undo.callback(module.register_forward_pre_hook(enter).remove)
    undo.callback(module.register_forward_hook(leave).remove)


def _own_time(event: Event, device: str) -> float:
    """Microseconds of the kernels that an operation started itself, or of the operation without those inside it."""
    if device != "cuda":
        return float(event.self_cpu_time_total)
    return float(sum(kernel.duration for kernel in event.kernels if not kernel.name.startswith(MARK)))
