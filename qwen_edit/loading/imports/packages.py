"""diffusers and transformers without the models that no edit uses, which their packages import or read all the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.abc import Loader
from importlib.util import find_spec
from pathlib import Path
from threading import get_ident
from types import ModuleType
from typing import Any

from qwen_edit.loading.imports.finder import Executed, Finder, Standing, Way, first
from qwen_edit.loading.imports.stand_in import Report, StandIn, import_instead, remove, silent

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
def lean_packages(report: Report = silent) -> Iterator[None]:
    """Import diffusers and transformers inside it for half of what their import takes (`bench/RESULTS.md`).

    Everything in them can still be imported, now or later: the rest of an eager package is imported when a name of it
    is asked for, and transformers reads the rest of its files when it is asked for a name that it does not know. What
    is imported already stays as it is, and so does what other threads import.

    Args:
        report: told inside it of a name that had the rest imported or read.
    """
    narrowed = _Narrowed(report)

    def deferred(loader: Loader) -> Loader:
        return Standing(loader, lambda name: StandIn(name, report=report))

    ways: dict[str, Way] = {**dict.fromkeys(EAGER, deferred), TABLES: partial(Executed, then=narrowed.narrow)}
    try:
        with first(Finder(ways)):
            yield
    finally:
        narrowed.undo()


class _Narrowed:
    """What makes transformers' tables, with only `FAMILIES` in them until more is asked for."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._thread = get_ident()
        self._tables: dict[str, Any] = {}
        self._originals: dict[str, Any] = {}
        self._is_undone = False

    @property
    def is_here(self) -> bool:
        """Whether what is imported now, by this thread, gets narrow tables."""
        return not self._is_undone and get_ident() == self._thread

    def narrow(self, tables: ModuleType) -> None:
        """Change the module that makes the tables."""
        names = vars(tables)
        self._originals = {
            "define_import_structure": names["define_import_structure"],
            "_LazyModule": names["_LazyModule"],
        }
        define, lazy = self._originals.values()
        self._tables = names
        names |= {"define_import_structure": _of_families(define, self), "_LazyModule": _partial(lazy, self)}

    def undo(self) -> None:
        """Whatever is imported from now on gets whole tables, also where a module holds what is undone here."""
        self._is_undone = True
        self._tables |= self._originals


def _of_families(define: Define, narrowed: _Narrowed) -> Define:
    def define_import_structure(path: str | Path, prefix: str | None = None) -> dict[frozenset[str], Any]:
        folder = Path(path).parent if Path(path).suffix else Path(path)  # a package may give its `__init__.py`
        if folder.name != "models" or not narrowed.is_here:
            return define(path, prefix)
        names: dict[frozenset[str], dict[str, set[str]]] = {}
        for family in FAMILIES:
            for needed, modules in define(folder / family, f"{prefix}.{family}" if prefix else family).items():
                names.setdefault(needed, {}).update(modules)
        return names

    return define_import_structure


def _partial(lazy: type[ModuleType], narrowed: _Narrowed) -> type[ModuleType]:
    """transformers' class of packages that import on demand, for packages of which only a part is known."""

    class Partial(lazy):  # type: ignore[valid-type, misc]
        """Takes over the whole table the first time that the part it has does not do."""

        def __init__(self, name: str, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - handed on
            super().__init__(name, *arguments, **options)
            if name in PARTIAL and narrowed.is_here:
                del self.__all__  # whoever asks for all names is to get them
            else:
                self.__class__ = lazy  # type: ignore[assignment]

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever transformers has under that name
            try:
                return super().__getattr__(name)
            except Exception as error:
                if _is_of_the_import_system(self, name, error):
                    raise
                narrowed.report(AttributeError(f"{self.__name__} is asked for {name}"))
            narrowed.undo()
            whole = import_instead(self, partial(remove, self))
            self.__class__ = lazy  # type: ignore[assignment]
            self.__dict__.update(vars(whole))
            return getattr(self, name)

    return Partial


def _is_of_the_import_system(package: ModuleType, name: str, error: Exception) -> bool:
    """Whether a package is only asked by the import system, which then imports a module in it."""
    return isinstance(error, AttributeError) and (
        (name.startswith("__") and name != "__all__") or find_spec(f"{package.__name__}.{name}") is not None
    )
