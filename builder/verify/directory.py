"""Proves that a model directory holds what its manifest promises."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from builder.bake.errors import StoppedError
from builder.bake.models_option import INCOMPLETE
from builder.bake.parts import BASE
from builder.bake.printed import amount
from builder.bake.progress import Progress, show
from builder.verify import checks, remedy
from builder.verify.report import Problem, Report
from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.catalog import BASE_FOLDER, CHECKPOINTS
from qwen_edit.store.manifest import FILE_NAME, Entry, Manifest, ManifestError
from qwen_edit.store.shards import INDEX, shards

Show = Callable[[str, int], Progress]

WEIGHT_FOLDERS = (f"{BASE_FOLDER}/text_encoder", f"{BASE_FOLDER}/vae")

READERS = min(8, os.cpu_count() or 1)
"""Files hashed at once: hashing leaves the interpreter's lock, so each takes a core."""


def verify(models: Path, every_byte: bool = False, show: Show = show) -> Report:
    """Look at all that the manifest of `models` promises; `every_byte` also compares each file's sha256."""
    try:
        manifest = Manifest.read(models)
    except ManifestError as error:
        return _without(models, str(error))
    if manifest is None:
        return _without(models, f"{FILE_NAME} is missing in {models}, so nothing there is known to be whole")
    problems = _problems(models, manifest)
    if every_byte:
        bad = {problem.path for problem in problems}
        problems += _hash_all(models, manifest, bad, show)
    sizes = _on_disk(models)
    return Report(str(models), manifest, tuple(problems), _notes(manifest, sizes), sum(sizes.values()))


def _without(models: Path, sentence: str) -> Report:
    problem = Problem(FILE_NAME, sentence, remedy.all_of(models))
    return Report(str(models), None, (problem,), (), sum(_on_disk(models).values()))


def _problems(models: Path, manifest: Manifest) -> list[Problem]:
    found = {entry.path: checks.quick(models, entry) for entry in manifest.files}
    sound = {path: sentence is None for path, sentence in found.items()}
    indexes = [entry for entry in manifest.files if entry.path.endswith(INDEX) and sound[entry.path]]
    found |= dict(fault for entry in indexes if (fault := checks.index(models, entry, sound)))
    problems = [
        Problem(path, sentence, remedy.file(models, path, manifest)) for path, sentence in found.items() if sentence
    ]
    problems += _lacking(models, manifest)
    return problems + _undecided(models, manifest, {problem.path for problem in problems})


def _lacking(models: Path, manifest: Manifest) -> list[Problem]:
    """What serving needs and the manifest does not promise."""
    folder = f"{BASE[0].folder}/"
    paths = [entry.path.removeprefix(folder) for entry in manifest.files if entry.path.startswith(folder)]
    problems = [_not_promised(models, folder + pattern, manifest) for part in BASE for pattern in part.lacks(paths)]
    if not any(manifest.entry(row.path) for row in CHECKPOINTS):
        sentence = "no checkpoint is in the manifest, and serving needs one"
        problems.append(Problem(FILE_NAME, sentence, remedy.checkpoint(models, manifest)))
    return problems


def _undecided(models: Path, manifest: Manifest, bad: set[str]) -> list[Problem]:
    """Folders with several weight files and no index, of which serving cannot tell which to load."""
    problems: list[Problem] = []
    for folder in WEIGHT_FOLDERS:
        if any(path.startswith(f"{folder}/") for path in bad):
            continue
        try:
            shards(models / folder)
        except ModelUnavailable as error:
            sentence = f"{folder} cannot be loaded: {error.sentence}"
            problems.append(Problem(folder, sentence, remedy.undecided(models, folder, manifest)))
    return problems


def _not_promised(models: Path, pattern: str, manifest: Manifest) -> Problem:
    return Problem(pattern, f"{pattern} is not in the manifest", remedy.file(models, pattern, manifest))


def _hash_all(models: Path, manifest: Manifest, bad: set[str], show: Show) -> list[Problem]:
    """Compare each file that is not known to be `bad`, the largest first so that the cores end together."""
    entries = sorted((entry for entry in manifest.files if entry.path not in bad), key=lambda entry: -entry.bytes)
    with show("verify", sum(entry.bytes for entry in entries)) as progress:
        sentences = _in_parallel(models, entries, progress)
    return [
        Problem(entry.path, sentence, remedy.file(models, entry.path, manifest))
        for entry, sentence in zip(entries, sentences, strict=True)
        if sentence
    ]


def _in_parallel(models: Path, entries: Sequence[Entry], progress: Progress) -> list[str | None]:
    stop = threading.Event()

    def advance(count: int) -> None:
        if stop.is_set():
            raise StoppedError
        progress.advance(count)

    with ThreadPoolExecutor(READERS) as pool:
        try:
            return list(pool.map(lambda entry: checks.hashed(models, entry, advance), entries))
        except KeyboardInterrupt:
            stop.set()
            raise


def _on_disk(models: Path) -> dict[str, int]:
    """Every file below the directory with its size, but for the manifest."""
    files = (Path(folder) / name for folder, _, names in os.walk(models) for name in names)
    sizes = {path.relative_to(models).as_posix(): path.lstat().st_size for path in files}
    sizes.pop(FILE_NAME, None)
    return sizes


def _notes(manifest: Manifest, sizes: Mapping[str, int]) -> tuple[str, ...]:
    extra = sorted(sizes.keys() - {entry.path for entry in manifest.files})
    unlisted = (f"{path} ({amount(sizes[path])}) {_reason(path)}" for path in extra)
    return (*unlisted, *_mixtures(manifest))


def _mixtures(manifest: Manifest) -> Iterator[str]:
    commits: dict[str, set[str]] = {}
    for entry in manifest.files:
        commits.setdefault(entry.repository, set()).add(entry.revision[:12])
    for repository, revisions in commits.items():
        if len(revisions) > 1:
            yield f"the files of {repository} are of {len(revisions)} commits: {', '.join(sorted(revisions))}"


def _reason(path: str) -> str:
    if path.endswith(INCOMPLETE):
        return "is of a bake that was cut; the same bake goes on with it"
    return "is not in the manifest, so nothing vouches for it"
