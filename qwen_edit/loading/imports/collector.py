"""Python's cyclic garbage collector, kept away from a start."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Let nothing be searched for cycles inside it, and nothing that was made inside it afterwards.

    An import makes hundreds of thousands of objects that live as long as the process. To search them again and again as
    they grow in number takes a seventh of the imports' time, and a search while jobs run would hold the interpreter,
    and so the next step, for a tenth of a second. For a process that loads one model and keeps it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
