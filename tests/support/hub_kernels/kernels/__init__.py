"""In the place of the package `kernels`, which runs code of a hub. It only notes what it is asked for."""

from collections.abc import Callable
from typing import Any, NoReturn

__version__ = "0.18.2"
"""One that transformers accepts."""

ASKED: list[str] = []
"""Repositories whose code would have been run."""


def get_kernel(repository: str, *_: object, **__: object) -> NoReturn:
    """Note it, and have no kernel."""
    ASKED.append(repository)
    raise RuntimeError(f"no kernel of {repository} here")


def __getattr__(name: str) -> Any:
    """Any other name is a decorator that changes nothing."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _decorator


def _decorator(*_: object, **__: object) -> Callable[[Any], Any]:
    return lambda decorated: decorated
