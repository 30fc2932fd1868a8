"""Where the time of an edit went."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nothing() -> None:
    pass


class Stopwatch:
    """Charges each moment to the innermost stage that is open.

    Args:
        settle: called before each reading. A device that works behind the caller's back is waited for here, so that its
            work is charged to the stage that asked for it.
    """

    def __init__(self, settle: Callable[[], None] = _nothing) -> None:
        self.milliseconds: dict[str, float] = {}
        self._settle = settle
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`, which may be entered again."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        self._settle()
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + (now - self._since) * 1000
        self._since = now
