"""How one process of `bench.gpu` measures and hands its figures to the parent: a line of JSON each time."""

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

TOLD = "figures: "
"""What a line of figures begins with; the rest is JSON."""

SAID = "said: "
"""What a line begins with that the parent prints as it is."""

Figures = dict[str, float]


def tell(**figures: float) -> None:
    """Hand figures to the parent as soon as they are known."""
    print(TOLD + json.dumps(figures), flush=True)


def say(line: str) -> None:
    """Have the parent print a line."""
    print(SAID + line, flush=True)


@contextmanager
def elapsed(name: str) -> Iterator[None]:
    """Tell the seconds that the inside took."""
    started = time.perf_counter()
    yield
    tell(**{name: time.perf_counter() - started})


def timed(device: str, action: Callable[[], object]) -> float:
    """Seconds until the device has done it all."""
    settle(device)
    started = time.perf_counter()
    action()
    settle(device)
    return time.perf_counter() - started


def settle(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def tell_peaks(device: str) -> None:
    """The most that tensors had, and what PyTorch had taken from the device for them."""
    tell(**{"peak GB": memory_gb(device, "max_memory_allocated"), "taken GB": memory_gb(device, "max_memory_reserved")})


def tell_outside(device: str, others: float) -> None:
    """What this process takes of the device, and beyond PyTorch's allocator: context, kernels' code, libraries' memory.

    A CPU has the process's own memory alone.

    Args:
        others: GB that other processes had taken before this one began; see `used_gb`.
    """
    if device != "cuda":
        tell(**{"used GB": memory_gb(device, "max_memory_reserved")})
        return
    used, reserved = used_gb() - others, torch.cuda.memory_reserved() / 1e9
    tell(**{"used GB": used, "reserved GB": reserved, "outside GB": used - reserved})


def used_gb() -> float:
    """What all processes have taken of the GPU; 0 without one."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9


def memory_gb(device: str, what: Literal["memory_allocated", "max_memory_allocated", "max_memory_reserved"]) -> float:
    """Of the device, by PyTorch's allocator; without one the most that the process has taken."""
    if device == "cuda":
        return float(getattr(torch.cuda, what)()) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
