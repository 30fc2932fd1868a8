"""The command that mends a bad file."""

import shlex
from pathlib import Path

from builder.source import CHECKPOINTS, REPOSITORIES, component_of
from qwen_edit.manifest import Entry, Manifest

PROGRAM = "python -m builder"


def all_of(models: Path) -> str:
    """Bake everything."""
    return f"{PROGRAM} bake --models {_quoted(models)}"


def checkpoint(models: Path) -> str:
    """Bake the checkpoint that serving prefers."""
    return f"{PROGRAM} bake --models {_quoted(models)} --components {CHECKPOINTS[0].name}"


def file(models: Path, path: str, manifest: Manifest) -> str:
    """Bring the file at `path` anew: its part at the commit that the manifest names, with nothing taken on trust.

    What came from no hub, as the tiny model, is written anew.
    """
    source = manifest.entry(path) or _neighbour(path, manifest)
    if source is not None and source.repository not in REPOSITORIES.values():
        return f"{PROGRAM} tiny --models {_quoted(models)}"
    part = component_of(path)
    if part is None:
        return all_of(models)
    pin = f" --revision {part.kind}={source.revision}" if source else ""
    return f"{all_of(models)} --components {part.name}{pin} --hash"


def _neighbour(path: str, manifest: Manifest) -> Entry | None:
    folder = path.partition("/")[0] + "/"
    return next((entry for entry in manifest.files if entry.path.startswith(folder)), None)


def _quoted(models: Path) -> str:
    return shlex.quote(str(models))
