"""diffusers and transformers without packages that they import where they find them, and that no edit uses."""

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.machinery import ModuleSpec
from threading import get_ident

ABSENT = frozenset({"accelerate", "peft", "torchvision"})
"""The engine needs accelerate, users have the others: together they take longer to import than all that an edit uses
(`bench/RESULTS.md`). PEFT asks transformers for a name that has all of its files read."""

ASKING = ("diffusers.utils.import_utils", "transformers.utils.import_utils")
"""The modules of diffusers 0.42 and transformers 5 that look for packages, once each, as they are imported."""


@contextmanager
def without_packages() -> Iterator[None]:
    """Let diffusers and transformers find none of `ABSENT` inside it, which they remember.

    What they do with these packages, such as LoRAs by PEFT, they refuse from then on in this process. Everybody else
    finds them, other threads as well.
    """
    original, thread, inside = importlib.util.find_spec, get_ident(), True

    @wraps(original)
    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        if inside and get_ident() == thread and name in ABSENT and asking_module() in ASKING:
            return None
        return original(name, package)

    importlib.util.find_spec = find_spec
    try:
        yield
    finally:
        inside = False  # for whoever took the function meanwhile
        if importlib.util.find_spec is find_spec:
            importlib.util.find_spec = original


def asking_module() -> str:
    """The name of the module whose function called the one that asks here."""
    frame = inspect.currentframe()
    for _ in range(2):
        frame = frame.f_back if frame is not None else None
    return str(frame.f_globals.get("__name__")) if frame is not None else ""
