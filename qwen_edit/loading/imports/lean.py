"""One import, lean where that works and in the ordinary way otherwise."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import get_ident

from qwen_edit.loading.imports.absent import without_packages
from qwen_edit.loading.imports.forget import forget
from qwen_edit.loading.imports.packages import lean_packages
from qwen_edit.loading.imports.stand_in import Report
from qwen_edit.loading.imports.torch_parts import lean_torch
from qwen_edit.log import log

PACKAGES = ("diffusers", "transformers")
"""Imported anew, with our modules that hold a part of them, where they could not be imported lean."""


@contextmanager
def lean_imports(module: str, *, enabled: bool, compiled: bool) -> Iterator[None]:
    """Import `module` with all that it needs, lean where that works and in the ordinary way otherwise.

    Inside the block the stand-ins are still there for what is built from it. Where something is not as the lean import
    expects it, the log gets one line, "imports not lean", and the start is only slower.

    Args:
        enabled: whether to try the lean import.
        compiled: whether something is compiled later, for which torch is left as it is.

    Raises:
        Exception: what the ordinary import raises.
    """
    with _Line() as line, ExitStack() as patches:
        failure = _import_lean(module, patches, line.write, compiled=compiled) if enabled else None
        importlib.import_module(module)
        if failure is not None:
            line.write(failure)
        yield


class _Line:
    """The line in the log, written once at most, inside the block and for its thread."""

    def __init__(self) -> None:
        self._thread = get_ident()
        self._open = True

    def write(self, error: Exception) -> None:
        if self._open and get_ident() == self._thread:
            self._open = False
            log("imports not lean", "warning", error=f"{type(error).__name__}: {error}")

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *_error: object) -> None:
        self._open = False


def _import_lean(module: str, patches: ExitStack, report: Report, *, compiled: bool) -> Exception | None:
    """Import a module inside the patches. Returns what went wrong, after which all is as before."""
    before = set(sys.modules)
    try:
        patches.enter_context(_undone(without_packages(), report))
        patches.enter_context(_undone(lean_packages(report), report))
        if not compiled:
            patches.enter_context(_undone(lean_torch(report), report))
        importlib.import_module(module)
    except Exception as error:
        patches.close()
        forget(PACKAGES, module.split(".")[0], before)
        return error.with_traceback(None)
    return None


@contextmanager
def _undone(patch: AbstractContextManager[None], report: Report) -> Iterator[None]:
    """A patch that reports what goes wrong when it is undone, rather than to end a start with it."""
    patch.__enter__()
    try:
        yield
    finally:
        try:
            patch.__exit__(None, None, None)
        except Exception as error:
            report(error)
