"""diffusers and transformers without the compiler and the distributed parts of torch, which no edit touches."""

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from threading import get_ident
from types import ModuleType
from typing import Any

import torch
import torch.distributed

from qwen_edit.loading.imports.absent import asking_module
from qwen_edit.loading.imports.finder import Finder, Standing, first, present
from qwen_edit.loading.imports.stand_in import Report, StandIn, silent

COMPILER = "torch._dynamo"

MARKERS = ("allow_in_graph", "assume_constant_result", "disable")
"""The decorators of `torch._dynamo` that diffusers 0.42 and transformers 5 apply as they are imported. Each only tells
the compiler how to treat a function, which behaves the same without."""

OPERATOR = f"{COMPILER}._trace_wrapped_higher_order_op"
"""The submodule of `torch._dynamo` that transformers takes a class from. It needs no other one."""

ASKING = ("diffusers", "transformers")
"""The packages that are told that torch was built without distributed."""


@contextmanager
def lean_torch(report: Report = silent) -> Iterator[None]:
    """Import diffusers and transformers inside it, and build their pipeline, for a third less (`bench/RESULTS.md`).

    They do without two parts of torch there:

    - `torch._dynamo`, of which they need three decorators, a submodule, and a class to ask whether a module is
      compiled. A stand-in offers just these, and is gone afterwards: whoever compiles later imports the real package.
    - `torch.distributed.tensor`, which transformers leaves alone where torch was built without distributed.

    Nothing is changed where the real packages are there already, nor for other threads: they get the real ones. Whoever
    means to compile imports `torch._dynamo` first: it does not learn of the decorators that were passed over.

    Args:
        report: told inside it of a name that had the real `torch._dynamo` imported.
    """
    with ExitStack() as undo:
        undo.enter_context(_without_compiler(report))
        if "torch.distributed.tensor" not in sys.modules:
            undo.enter_context(_without_distributed())
        yield


@contextmanager
def _without_compiler(report: Report) -> Iterator[None]:
    made: list[_Compiler] = []

    def make(_name: str) -> ModuleType:
        made.append(_Compiler(report))
        return made[-1]

    try:
        with first(_CompilerFinder({COMPILER: lambda loader: Standing(loader, make)})):
            yield
    finally:
        for stand_in in made:
            stand_in.leave()  # torch imports the real one on the next use of the name


class _Compiler(StandIn):
    """In place of `torch._dynamo`."""

    def __init__(self, report: Report) -> None:
        self._frames = StandIn(f"{COMPILER}.eval_frame", {"OptimizedModule": _NoModule}, report)
        known = {**dict.fromkeys(MARKERS, _mark_nothing), "eval_frame": self._frames}
        super().__init__(COMPILER, known, report)

    def leave(self) -> bool:
        self._frames.leave()
        return super().leave()

    def goes_along(self) -> list[str]:
        # The real package could not be imported around them, but for the one that registers an operator, which it may
        # do only once.
        return [name for name in list(sys.modules) if name.startswith(f"{COMPILER}.") and name != OPERATOR]


class _CompilerFinder(Finder):
    """Also has the stand-in give way before another thread imports a module below it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        stand_in = sys.modules.get(COMPILER)
        if get_ident() == self._thread or not name.startswith(f"{COMPILER}.") or not isinstance(stand_in, StandIn):
            return super().find_spec(name, path, target)
        stand_in.give_way()
        return present(sys.modules[name]) if name in sys.modules else None


@contextmanager
def _without_distributed() -> Iterator[None]:
    original, thread, inside = torch.distributed.is_available, get_ident(), True

    @functools.wraps(original)
    def is_available() -> bool:
        return original() and not (inside and get_ident() == thread and asking_module().split(".")[0] in ASKING)

    torch.distributed.is_available = is_available
    try:
        yield
    finally:
        inside = False  # for whoever took the function meanwhile
        if torch.distributed.is_available is is_available:
            torch.distributed.is_available = original


class _NoModule:
    """In place of the class of compiled modules: nothing is one."""


def _mark_nothing(function: Any = None, *_arguments: object, **_options: object) -> Any:  # noqa: ANN401 - a decorator
    """Hand the function back, also where the decorator is called with options first."""
    return _mark_nothing if function is None else function
