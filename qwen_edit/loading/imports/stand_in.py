"""Modules that stand in for a package until somebody asks for more than they know."""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from threading import Lock, get_ident
from types import MappingProxyType, ModuleType
from typing import Any

Report = Callable[[Exception], None]
"""Told why an import is not as lean as it was meant to be."""

NOTHING: Mapping[str, Any] = MappingProxyType({})

_CHANGING = Lock()
"""Held while modules are taken out of Python or put back, never during an import."""


def silent(_error: Exception) -> None:
    """A `Report` that says nothing."""


class StandIn(ModuleType):
    """In place of a package, which is imported in the ordinary way when somebody asks for a name not known here.

    Only the thread that made it gets what is known; any other thread gets the package. Whoever still holds the
    stand-in afterwards is answered by the package.
    """

    def __init__(self, name: str, known: Mapping[str, Any] = NOTHING, report: Report = silent) -> None:
        super().__init__(name)
        self.__known = dict(known)
        self.__thread = get_ident()
        self.__report = report

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the package has under that name
        if name.startswith("__") and name != "__all__":  # the import system and `inspect` ask every module for some
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if get_ident() == self.__thread and name in self.__known:
            return self.__known[name]
        self.__report(AttributeError(f"{self.__name__} is asked for {name}"))
        package = self.give_way()
        if name == "__all__":
            return getattr(package, name, [public for public in vars(package) if not public.startswith("_")])
        return getattr(package, name)

    def __dir__(self) -> list[str]:
        return dir(self.give_way())

    def give_way(self) -> ModuleType:
        """The package itself, imported now where it is not there yet.

        Raises:
            Exception: what its import raises, each time that it is asked for.
        """
        above = sys.modules.get(self.__name__.rpartition(".")[0])
        if isinstance(above, StandIn):
            above.give_way()
        package = import_instead(self, self.leave)
        for name, value in list(vars(self).items()):
            if isinstance(value, ModuleType) and sys.modules.get(value.__name__) is value:
                vars(package).setdefault(name, value)  # a module in the package that was imported before the package
        return package

    def leave(self) -> bool:
        """Know nothing from now on, and be no module of Python's. Returns whether it was one."""
        self.__known.clear()
        return remove(self, self.goes_along)

    def goes_along(self) -> Iterable[str]:
        """The names of the modules that cannot stay without it."""
        return ()


def nothing_else() -> Iterable[str]:
    """No names of modules."""
    return ()


def remove(module: ModuleType, also: Callable[[], Iterable[str]] = nothing_else) -> bool:
    """Take a module out of Python where it is there, and then other ones with it.

    Args:
        also: their names.

    Returns:
        Whether it was there.
    """
    with _CHANGING:
        if sys.modules.get(module.__name__) is not module:
            return False
        for name in (module.__name__, *also()):
            sys.modules.pop(name, None)
        package, _, name = module.__name__.rpartition(".")
        names = vars(sys.modules[package]) if package in sys.modules else {}
        if names.get(name) is module:
            del names[name]
        return True


def import_instead(module: ModuleType, leave: Callable[[], bool]) -> ModuleType:
    """What Python imports under a module's name once that has left.

    Args:
        leave: has it leave, and says whether it was there. If so, it is put back where the import fails.

    Raises:
        Exception: what the import raises.
    """
    was_there = leave()
    try:
        return importlib.import_module(module.__name__)
    except BaseException:
        if was_there:
            sys.modules.setdefault(module.__name__, module)
        raise
