"""What a verification found, for people and for machines."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from builder.bake.parts import BASE
from builder.bake.printed import amount, megabytes
from qwen_edit.store.catalog import CHECKPOINTS, Checkpoint
from qwen_edit.store.manifest import Entry, Manifest


@dataclass(frozen=True)
class Problem:
    """What is wrong with the file at `path`, as a sentence that names it, and the command that mends it."""

    path: str
    sentence: str
    command: str


@dataclass(frozen=True)
class Report:
    """A model directory as it was found. `manifest` is None where none can be used; `bytes` is all that lies there."""

    models: str
    manifest: Manifest | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    bytes: int

    @property
    def ok(self) -> bool:
        """Whether all that the manifest promises is there and whole, and enough to serve."""
        return not self.problems

    def promised(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that the manifest lists; where it lists none, every one that it could."""
        listed = tuple(row for row in CHECKPOINTS if self.manifest and self.manifest.entry(row.path))
        return listed or CHECKPOINTS

    def faults(self, path: str) -> list[Problem]:
        """The problems of one file."""
        return [problem for problem in self.problems if problem.path == path]

    def base_faults(self) -> list[Problem]:
        """The problems of the base model."""
        return [
            problem for problem in self.problems if any(problem.path.startswith(f"{part.folder}/") for part in BASE)
        ]


@dataclass(frozen=True)
class Marks:
    """How a line begins that says yes or no."""

    good: str = "✓"
    bad: str = "✗"


PLAIN = Marks("[ok]", "[no]")
"""For an output that cannot show the others."""


def lines(report: Report, marks: Marks) -> list[str]:
    """The report for people."""
    checkpoints = report.promised()
    found = [row for row in checkpoints if _has(report, row.path)]
    return [
        _base_line(report, marks),
        *(_checkpoint_line(report, row, marks) for row in checkpoints),
        f"Found {len(found)}/{len(checkpoints)} Nunchaku models",
        f"Total model cache size: {amount(report.bytes)}",
        *(line for problem in report.problems for line in _problem_lines(problem, marks)),
        *(f"note: {note}" for note in report.notes),
    ]


def listing(report: Report) -> list[str]:
    """Every file that the manifest promises, with its size and source."""
    files = report.manifest.files if report.manifest else ()
    width = max((len(amount(entry.bytes)) for entry in files), default=0)
    return [f"{amount(entry.bytes):>{width}}  {entry.path}  {_source(entry)}" for entry in files]


def document(report: Report) -> str:
    """The report for machines: one JSON object."""
    files = report.manifest.files if report.manifest else ()
    content: dict[str, Any] = {
        "ok": report.ok,
        "models": report.models,
        "bytes": report.bytes,
        "base": not report.base_faults() and report.manifest is not None,
        "checkpoints": {row.name: _has(report, row.path) for row in CHECKPOINTS},
        "files": [{**asdict(entry), "ok": not report.faults(entry.path)} for entry in files],
        "problems": [asdict(problem) for problem in report.problems],
        "notes": list(report.notes),
    }
    return json.dumps(content, indent=1)


def _base_line(report: Report, marks: Marks) -> str:
    if report.manifest is None:
        return f"{marks.bad} Base Qwen model: nothing vouches for it"
    if faults := report.base_faults():
        return f"{marks.bad} Base Qwen model: {len(faults)} {'problem' if len(faults) == 1 else 'problems'}"
    return f"{marks.good} Base Qwen model found"


def _problem_lines(problem: Problem, marks: Marks) -> tuple[str, str]:
    return f"{marks.bad} {problem.sentence}", f"    mend it: {problem.command}"


def _checkpoint_line(report: Report, row: Checkpoint, marks: Marks) -> str:
    entry = report.manifest.entry(row.path) if report.manifest else None
    if entry is None:
        return f"{marks.bad} {row.file}: not there"
    if report.faults(row.path):
        return f"{marks.bad} {row.file}: not whole"
    return f"{marks.good} {row.file}: {megabytes(entry.bytes)}"


def _has(report: Report, path: str) -> bool:
    return report.manifest is not None and report.manifest.entry(path) is not None and not report.faults(path)


def _source(entry: Entry) -> str:
    return f"{entry.repository}@{entry.revision[:12]}"
