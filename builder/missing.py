"""Weights fetched by the worker itself, which it does only where `QWEN_EDIT_ALLOW_DOWNLOAD` is on."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_edit.errors import Cancelled, ModelUnavailable
from qwen_edit.log import log
from qwen_edit.store.catalog import CHECKPOINTS
from qwen_edit.store.folder import available, is_whole
from qwen_edit.store.manifest import Manifest, ManifestError

if TYPE_CHECKING:
    from builder.bake.parts import Kind

POLL = 0.5
"""Seconds between two looks at the `cancelled` flag, and at whether another process still writes."""

REMIND = 60.0
"""Seconds between two lines of the log that say what is waited for."""

_FAILED = "the weights could not be fetched; the worker's log says why"


def _never() -> bool:
    return False


def fetch_missing(models: Path, cancelled: Callable[[], bool] = _never) -> None:
    """Bake what is not whole: the base model, and the preferred checkpoint where there is none.

    While another process writes to `models`, this one waits, and takes what that one brings.

    Args:
        cancelled: asked twice a second; what was fetched by then stays, and the next fetch goes on from there.

    Raises:
        ModelUnavailable: the fetch failed; the cause says how.
        Cancelled: the flag was set.
    """
    if is_whole(models):
        return
    from builder.bake.errors import BakeError, StoppedError

    try:
        with _stop_when(cancelled) as stop:
            _fetch(models, stop)
    except StoppedError as error:
        raise Cancelled("the fetch of the weights was cancelled") from error
    except BakeError as error:
        raise ModelUnavailable(_FAILED) from error


def _fetch(models: Path, stop: threading.Event) -> None:
    from builder.bake.errors import BusyError, StoppedError

    reminded = -math.inf
    while not is_whole(models):
        try:
            _bake(models, stop)
        except BusyError as error:
            if time.monotonic() - reminded >= REMIND:
                reminded = time.monotonic()
                log("waiting", said=str(error))
        else:
            return
        if stop.wait(POLL):
            raise StoppedError


def _bake(models: Path, stop: threading.Event) -> None:
    from builder.bake.errors import BakeError
    from builder.bake.hub import Hub
    from builder.bake.order import Order, bake
    from builder.bake.parts import select

    checkpoints = [checkpoint.name for checkpoint in available(models)] or [CHECKPOINTS[0].name]
    order = Order(models, select((), checkpoints), _revisions(models))
    outcome = bake(order, Hub(stop=stop), lambda line: log("fetching", said=line))
    for sentences in outcome.failures.values():
        raise BakeError(sentences[0])


def _revisions(models: Path) -> "dict[Kind, str]":
    """Of each repository the commit of most of the files that are promised: mending moves none to another."""
    from builder.bake.parts import REPOSITORIES

    try:
        manifest = Manifest.read(models) or Manifest()
    except ManifestError:
        return {}
    commits = {
        kind: Counter(entry.revision for entry in manifest.files if entry.repository == repository)
        for kind, repository in REPOSITORIES.items()
    }
    return {kind: counts.most_common(1)[0][0] for kind, counts in commits.items() if counts}


@contextmanager
def _stop_when(cancelled: Callable[[], bool]) -> Iterator[threading.Event]:
    """An event that is set as soon as the flag is, by a thread that ends with the block."""
    stop, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            if cancelled():
                stop.set()
                return

    watcher = threading.Thread(target=watch, name="cancelled", daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        over.set()
        watcher.join()
