"""Imports undone, so that they can be made again."""

import logging
import sys
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from types import ModuleType


def forget(packages: Collection[str], ours: str, before: AbstractSet[str]) -> None:
    """Take out of Python what was imported of some packages, and our modules that hold a part of it.

    What registered something in other packages may do so again: torch replaces an operator of the same name.

    Args:
        packages: their names.
        ours: the name of our own package.
        before: the names of the modules that stay.
    """
    new = set(sys.modules) - before
    gone = {name for name in new if _package(name) in packages}
    rest = {name for name in new if _package(name) == ours}
    while holding := {name for name in rest if _holds(sys.modules[name], gone)}:
        gone |= holding
        rest -= holding
    for name in gone:
        sys.modules.pop(name, None)
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ not in gone]
    for package in packages:
        if package in gone:
            logging.getLogger(package).handlers.clear()  # each adds one, and would say everything twice


def _package(module: str) -> str:
    return module.split(".")[0]


def _holds(module: ModuleType, gone: AbstractSet[str]) -> bool:
    """Whether a module's names stand for modules that go, other than those in it, or for something defined in one."""
    return any(_origin(value) in gone for value in vars(module).values() if not _is_in(module, value))


def _origin(value: object) -> str:
    return value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", ""))


def _is_in(package: ModuleType, value: object) -> bool:
    return isinstance(value, ModuleType) and value.__name__.startswith(f"{package.__name__}.")
