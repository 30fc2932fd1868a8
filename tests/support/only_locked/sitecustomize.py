"""For a program that finds this on PYTHONPATH: packages that the image's locks do not pin are not to be found.

The names of the modules to hide are in QWEN_TEST_HIDDEN, separated by commas.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

HIDDEN = set(os.environ["QWEN_TEST_HIDDEN"].split(","))


class OnlyLocked(PathFinder):
    """Finds what Python finds, but for the hidden modules."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if path is None and fullname in HIDDEN else super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyLocked
