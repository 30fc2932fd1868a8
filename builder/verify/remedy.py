"""The command that mends a bad file."""

import shlex
from pathlib import Path

from builder.bake.parts import CHECKPOINTS, component_of
from qwen_edit.store.manifest import MADE_HERE, Entry, Manifest
from qwen_edit.store.shards import FILE, INDEX

PROGRAM = "python -m builder"


def all_of(models: Path) -> str:
    """Bake everything."""
    return f"{PROGRAM} bake --models {_quoted(models)}"


def checkpoint(models: Path, manifest: Manifest) -> str:
    """Bring the checkpoint that serving prefers."""
    return _write_anew(models, manifest) or f"{all_of(models)} --components {CHECKPOINTS[0].name}"


def file(models: Path, path: str, manifest: Manifest) -> str:
    """Bring the file at `path` anew: its part at the commit that the manifest names, with nothing taken on trust.

    A model that was made here is written anew.
    """
    if written := _write_anew(models, manifest):
        return written
    part = component_of(path)
    if part is None:
        return all_of(models)
    source = manifest.entry(path) or _neighbour(path, manifest)
    pin = f" --revision {part.kind}={source.revision}" if source and source.repository == part.repository else ""
    return f"{all_of(models)} --components {part.name}{pin} --hash"


def undecided(models: Path, folder: str, manifest: Manifest) -> str:
    """Take the weights of a folder away that nothing vouches for; where all are promised, bring its index."""
    promised = {models / entry.path for entry in manifest.files}
    found = [path for ending in (FILE, INDEX) for path in sorted((models / folder).glob(f"*{ending}"))]
    if strays := [path for path in found if path not in promised]:
        return f"rm {shlex.join(map(str, strays))}"
    return file(models, f"{folder}/model{INDEX}", manifest)


def _write_anew(models: Path, manifest: Manifest) -> str | None:
    """The command that writes all of it, if it came from no hub: a directory holds the model of one source."""
    made = next((entry for entry in manifest.files if entry.repository in MADE_HERE), None)
    return f"{PROGRAM} {made.command} --models {_quoted(models)}" if made else None


def _neighbour(path: str, manifest: Manifest) -> Entry | None:
    folder = path.partition("/")[0] + "/"
    return next((entry for entry in manifest.files if entry.path.startswith(folder)), None)


def _quoted(models: Path) -> str:
    return shlex.quote(str(models))
