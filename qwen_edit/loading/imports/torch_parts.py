"""diffusers and transformers without the compiler and the distributed parts of torch, which no edit touches."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed

MARKERS = ("allow_in_graph", "assume_constant_result", "disable")
"""The decorators of `torch._dynamo` that diffusers 0.42 and transformers 5 apply as they are imported. Each only tells
the compiler how to treat a function, which behaves the same without."""

OPERATOR = "_trace_wrapped_higher_order_op"
"""The submodule of `torch._dynamo` that transformers takes a class from. It needs no other one."""


@contextmanager
def lean_torch() -> Iterator[None]:
    """Import diffusers and transformers inside it, and build their pipeline, for a third less (`bench/RESULTS.md`).

    They do without two parts of torch there:

    - `torch._dynamo`, of which they need three decorators, a submodule, and a class to ask whether a module is
      compiled. A stand-in offers just these, and is gone afterwards: whoever compiles later imports the real package.
    - `torch.distributed.tensor`, which transformers leaves alone where torch was built without distributed.

    Nothing is changed where the real packages are there already. Whoever means to compile imports `torch._dynamo`
    first: it does not learn of the decorators that were passed over.
    """
    with ExitStack() as undo:
        if "torch._dynamo" not in sys.modules:
            undo.enter_context(_dynamo_stand_in())
        if "torch.distributed.tensor" not in sys.modules:
            undo.enter_context(_without_distributed())
        yield


@contextmanager
def _dynamo_stand_in() -> Iterator[None]:
    stand_in = ModuleType("torch._dynamo")
    stand_in.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]  # its submodules are the real ones
    for name in MARKERS:
        setattr(stand_in, name, _mark_nothing)
    vars(stand_in)["eval_frame"] = SimpleNamespace(OptimizedModule=_NoModule)
    sys.modules[stand_in.__name__] = stand_in
    vars(torch)["_dynamo"] = stand_in
    try:
        yield
    finally:
        # torch imports the real one on the next use of the name. What else was imported below the stand-in goes as
        # well: the real package could not be imported around it.
        for name in _below(stand_in.__name__):
            del sys.modules[name]
        del vars(torch)["_dynamo"]


def _below(package: str) -> list[str]:
    """A package and its imported modules, but for the one that registers an operator, which it may do only once."""
    return [
        name
        for name in sys.modules
        if name == package or (name.startswith(f"{package}.") and name != f"{package}.{OPERATOR}")
    ]


@contextmanager
def _without_distributed() -> Iterator[None]:
    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = is_available


class _NoModule:
    """In place of the class of compiled modules: nothing is one."""


def _mark_nothing(function: Any = None, *_arguments: object, **_options: object) -> Any:  # noqa: ANN401 - a decorator
    """Hand the function back, also where the decorator is called with options first."""
    return _mark_nothing if function is None else function
