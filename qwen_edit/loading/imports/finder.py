"""The way into Python's imports: a few modules, by their names, are made in another way."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import get_ident
from types import ModuleType

Way = Callable[[Loader], Loader]
"""What makes a module in another way than the given loader."""


class Finder(MetaPathFinder):
    """Finds what Python finds, and has the named modules made in another way, once, for the thread that made it."""

    def __init__(self, ways: Mapping[str, Way]) -> None:
        self._ways = dict(ways)
        self._thread = get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """For `sys.meta_path`."""
        if get_ident() != self._thread or name not in self._ways:
            return None
        way = self._ways.pop(name)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = way(spec.loader)
        return spec


@contextmanager
def first(finder: MetaPathFinder) -> Iterator[None]:
    """Ask a finder before all others inside it."""
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class Standing(Loader):
    """Makes a stand-in, and does not run the package's code."""

    def __init__(self, loader: Loader, make: Callable[[str], ModuleType]) -> None:
        self._loader = loader
        self._make = make

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """For the import system."""
        return self._make(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """For the import system."""
        give_back(module, self._loader)


class Executed(Loader):
    """Another loader, and something that is done once the module has been executed."""

    def __init__(self, loader: Loader, then: Callable[[ModuleType], object]) -> None:
        self._loader = loader
        self._then = then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """For the import system."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """For the import system."""
        give_back(module, self._loader)
        self._loader.exec_module(module)
        self._then(module)


def present(module: ModuleType) -> ModuleSpec:
    """By which the import system gets a module that came to be there while it was looked for, and does not run it."""
    spec = ModuleSpec(module.__name__, _Present(module))
    # The import system takes this one in place of what a finder gives it then. Not by setattr: torch refuses it.
    vars(module)["__spec__"] = spec
    return spec


class _Present(Loader):
    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._spec


def give_back(module: ModuleType, loader: Loader) -> None:
    """Have a module say that it comes from this loader."""
    module.__loader__ = loader
    if module.__spec__ is not None:
        module.__spec__.loader = loader
