"""diffusers and transformers without the models that no edit uses, which their packages import or read all the same."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

EAGER = ("diffusers.models.autoencoders", "diffusers.models.transformers")
"""Packages of diffusers 0.42 that import all 119 modules in them; an edit uses two."""

FAMILIES = ("auto", "qwen2", "qwen2_vl", "qwen2_5_vl")
"""The folders below transformers' `models` that serving imports from, of some 500."""

TABLES = "transformers.utils.import_utils"
"""Where transformers 5 makes the tables of its names, for which it reads all of its 2,500 files, three times over."""

PARTIAL = {"transformers", "transformers.models"}
"""The packages with such a table of all families."""

Define = Callable[..., dict[frozenset[str], dict[str, set[str]]]]
"""`define_import_structure(path, prefix=None)`: the names in each module of a folder, by the packages they need."""


@contextmanager
def lean_packages() -> Iterator[None]:
    """Import diffusers and transformers inside it for half of what their import takes (`bench/RESULTS.md`).

    Everything in them can still be imported, now or later: the rest of an eager package is imported when a name of it
    is asked for, and transformers reads the rest of its files when it is asked for a name that it does not know. What
    is imported already stays as it is.
    """
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if finder.narrowed is not None:
            finder.narrowed.undo()


class _Finder(MetaPathFinder):
    """Finds what Python finds, and has the few modules named above executed in another way."""

    def __init__(self) -> None:
        self.narrowed: _Narrowed | None = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in (*EAGER, TABLES):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Executed(spec.loader, self._narrow if name == TABLES else _defer)
        return spec

    def _narrow(self, loader: Loader, module: ModuleType) -> None:
        loader.exec_module(module)
        self.narrowed = _Narrowed(module)


class _Executed(Loader):
    """Another loader, with another way to execute the module."""

    def __init__(self, loader: Loader, how: Callable[[Loader, ModuleType], None]) -> None:
        self._loader = loader
        self._how = how

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        self._how(self._loader, module)


_LOADER = "_deferred_loader"


class _Deferred(ModuleType):
    """A package whose own code runs when a name of it is asked for that is none of a module imported from it."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the package has under that name
        if name.startswith("__") and name != "__all__":  # the import system asks every package for some
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        try:
            vars(self)[_LOADER].exec_module(self)
        except BaseException:
            self.__class__ = _Deferred  # whoever asks next gets the same error
            raise
        return getattr(self, name)


def _defer(loader: Loader, module: ModuleType) -> None:
    vars(module)[_LOADER] = loader
    module.__class__ = _Deferred


class _Narrowed:
    """The module that makes transformers' tables, with only `FAMILIES` in them until more is asked for."""

    def __init__(self, tables: ModuleType) -> None:
        self._tables = vars(tables)
        self._define: Define = self._tables["define_import_structure"]
        self._lazy: type[ModuleType] = self._tables["_LazyModule"]
        self._tables |= {"define_import_structure": self._define_families, "_LazyModule": self._partial()}

    def undo(self) -> None:
        """Whatever is imported from now on gets whole tables."""
        self._tables |= {"define_import_structure": self._define, "_LazyModule": self._lazy}

    def _define_families(self, path: str | Path, prefix: str | None = None) -> Mapping[frozenset[str], Any]:
        folder = Path(path).parent if Path(path).suffix else Path(path)  # a package may give its `__init__.py`
        if folder.name != "models":
            return self._define(path, prefix)
        names: dict[frozenset[str], dict[str, set[str]]] = {}
        for family in FAMILIES:
            for needed, modules in self._define(folder / family, f"{prefix}.{family}" if prefix else family).items():
                names.setdefault(needed, {}).update(modules)
        return names

    def _partial(self) -> type[ModuleType]:
        lazy, undo = self._lazy, self.undo

        class Partial(lazy):  # type: ignore[valid-type, misc]
            """Takes over the whole table the first time that it is asked for a name it does not know."""

            def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever transformers has under that name
                try:
                    return super().__getattr__(name)
                except AttributeError:
                    if self.__name__ not in PARTIAL or _is_none_of_its_names(self, name):
                        raise
                self.__class__ = lazy  # type: ignore[assignment]
                undo()
                del sys.modules[self.__name__]
                self.__dict__.update(vars(importlib.import_module(self.__name__)))
                sys.modules[self.__name__] = self
                return getattr(self, name)

        return Partial


def _is_none_of_its_names(package: ModuleType, name: str) -> bool:
    """Whether a package is only asked by the import system, which then imports a module in it."""
    return name.startswith("__") or find_spec(f"{package.__name__}.{name}") is not None
