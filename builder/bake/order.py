"""Brings the weights into the model directory: list, plan, check the disk, fetch, prove, record."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from builder.bake.download import fetch
from builder.bake.errors import BakeError, OccupiedError, local_fault
from builder.bake.hub import Hub, Listing
from builder.bake.parts import Kind, Part
from builder.bake.printed import amount
from builder.bake.progress import Progress, show
from builder.bake.record import Record, exclusive
from builder.bake.tasks import Task, tasks, whole
from qwen_edit.store.manifest import MADE_HERE, Manifest, ManifestError

Say = Callable[[str], None]
Show = Callable[[str, int], Progress]

JOBS = 4
"""Files fetched at once: one connection seldom fills the line."""


@dataclass(frozen=True)
class Order:
    """What to bake and where. `reread` proves files again that the manifest already vouches for."""

    models: Path
    parts: tuple[Part, ...]
    revisions: Mapping[Kind, str] = field(default_factory=dict)
    reread: bool = False
    jobs: int = JOBS


@dataclass
class Outcome:
    """What a bake did: bytes fetched, the commit of each repository, and per part the sentences of what failed."""

    fetched: int = 0
    files: int = 0
    bytes: int = 0
    commits: dict[str, str] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def fail(self, part: Part, error: BakeError) -> None:
        """Note that `part` is not whole."""
        self.failures.setdefault(part.name, []).append(str(error))


def bake(order: Order, hub: Hub, say: Say, show: Show = show) -> Outcome:
    """Bring every part of the order; one that fails leaves the others whole and recorded.

    Raises:
        BakeError: nothing can be done at all: the directory, what it holds, the lock, the disk space.
        StoppedError: the hub's `stop` was set.
    """
    outcome = Outcome()
    try:
        order.models.mkdir(parents=True, exist_ok=True)
        with exclusive(order.models):
            record = Record(order.models, _manifest(order.models, say))
            plan = _plan(order, hub, record, outcome, say)
            _record_held(plan, record)
            _check_disk(plan, order.models)
            _bring_all(plan, order, hub, record, outcome, show)
            _prune(plan, order.models, record, outcome)
            outcome.files, outcome.bytes = len(plan), sum(task.file.bytes for task in plan)
    except OSError as error:
        raise local_fault(error, order.models) from error
    return outcome


def _manifest(models: Path, say: Say) -> Manifest:
    try:
        manifest = Manifest.read(models) or Manifest()
    except ManifestError as error:
        say(f"{error}; every file that is there is read again")
        return Manifest()
    if made := manifest.repositories() & set(MADE_HERE):
        raise OccupiedError(models, f"the weights of {', '.join(sorted(made))}")
    return manifest


def _plan(order: Order, hub: Hub, record: Record, outcome: Outcome, say: Say) -> list[Task]:
    plan: dict[str, Task] = {}
    listings = _listings(order, hub, outcome, say)
    for part in order.parts:
        if part.kind not in listings:
            continue
        try:
            found = tasks(part, listings[part.kind], order.models, record, order.reread)
        except BakeError as error:
            outcome.fail(part, error)
        else:
            plan |= {task.path: task for task in found}
    return sorted(plan.values(), key=lambda task: (-task.file.bytes, task.path))


def _listings(order: Order, hub: Hub, outcome: Outcome, say: Say) -> dict[Kind, Listing]:
    listings: dict[Kind, Listing] = {}
    for kind in dict.fromkeys(part.kind for part in order.parts):
        parts = [part for part in order.parts if part.kind == kind]
        try:
            listings[kind] = hub.listing(parts[0].repository, order.revisions.get(kind, "main"), say)
            outcome.commits[parts[0].repository] = listings[kind].commit
        except BakeError as error:
            for part in parts:
                outcome.fail(part, error)
    return listings


def _record_held(plan: Iterable[Task], record: Record) -> None:
    for task in plan:
        if task.held is not None:
            record.put(task.entry(task.held))


def _check_disk(plan: Iterable[Task], models: Path) -> None:
    needed = sum(task.missing(models) for task in plan)
    free = shutil.disk_usage(models).free
    if needed > free:
        raise BakeError(
            f"{models} needs {needed:,} bytes ({amount(needed)}) more and its disk has {free:,} ({amount(free)}) free; "
            f"free another {amount(needed - free)}, or bake less with --checkpoints or --components"
        )


def _bring_all(plan: Iterable[Task], order: Order, hub: Hub, record: Record, outcome: Outcome, show: Show) -> None:
    todo = [task for task in plan if task.held is None]
    if not todo:
        return
    with (
        show("bake", sum(task.file.bytes for task in todo)) as progress,
        ThreadPoolExecutor(order.jobs, thread_name_prefix="bake") as pool,
    ):
        try:
            futures = {pool.submit(_bring, task, order.models, hub, record, progress): task for task in todo}
            _collect(futures, outcome, progress)
        except KeyboardInterrupt:
            hub.stop.set()
            raise


def _collect(futures: Mapping[Future[bool], Task], outcome: Outcome, progress: Progress) -> None:
    for future in as_completed(futures):
        task = futures[future]
        try:
            fetched = future.result()
        except BakeError as error:
            outcome.fail(task.part, error)
        else:
            outcome.fetched += task.file.bytes if fetched else 0
            progress.say(f"{'fetched' if fetched else 'kept'} {task.path}, {amount(task.file.bytes)}")


def _bring(task: Task, models: Path, hub: Hub, record: Record, progress: Progress) -> bool:
    """Make the file whole and record it; whether it had to be fetched."""
    hub.halt_if_stopped()
    sha256 = whole(task, models, hub, progress.advance) if task.there else None
    fetched = sha256 is None
    if sha256 is None:
        sha256 = fetch(hub, task.listing, task.file, models / task.path, progress.advance, progress.say)
    try:
        record.put(task.entry(sha256))
    except OSError as error:
        raise local_fault(error, models) from error
    return fetched


def _prune(plan: Iterable[Task], models: Path, record: Record, outcome: Outcome) -> None:
    """Remove what an older commit of a part had and this one has not."""
    paths = {task.path for task in plan}
    parts = {task.part for task in plan if task.part.name not in outcome.failures}
    stale = [path for path in record.paths() if path not in paths and any(part.holds(path) for part in parts)]
    record.drop(stale)
    for path in stale:
        (models / path).unlink(missing_ok=True)
