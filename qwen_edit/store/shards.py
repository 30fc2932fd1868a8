"""Which files make up a model folder. No torch here: they are warmed in the page cache before it is imported."""

import json
from collections.abc import Mapping
from pathlib import Path

from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.documents import CHECK, file_name, read_text

FILE, INDEX = ".safetensors", ".safetensors.index.json"


def shards(folder: Path) -> list[Path]:
    """The safetensors files that make up a model folder: those its index names, else the only one there.

    Raises:
        ModelUnavailable: there is no shard, it cannot be told which there are, or the index cannot be read.
    """
    index = _only(folder, INDEX)
    if index is not None:
        return [folder / name for name in sorted(set(read_index(index).values()))]
    file = _only(folder, FILE)
    if file is None:
        raise ModelUnavailable(f"{folder.name} has no {FILE} file; fetch it with python -m builder bake")
    return [file]


def read_index(index: Path) -> Mapping[str, str]:
    """Each tensor with the name of the file beside the index that holds it.

    Raises:
        ModelUnavailable: it cannot be read as an index, or it names no file.
    """
    try:
        files = json.loads(read_text(index))["weight_map"]
        is_index = bool(files) and all(map(_is_shard, files.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _no_index(index) from error
    if not is_index:
        raise _no_index(index)
    return dict(files)


def _only(folder: Path, ending: str) -> Path | None:
    """The only file of a folder whose name ends so, or None."""
    found = sorted(folder.glob(f"*{ending}"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelUnavailable(f"{folder.name} has several {ending} files and nothing that chooses among them: {names}")
    return found[0] if found else None


def _is_shard(name: object) -> bool:
    """Whether it names a weight file of the index's own folder."""
    return isinstance(name, str) and name.endswith(FILE) and name.isprintable() and "/" not in name


def _no_index(index: Path) -> ModelUnavailable:
    expected = f'expected a "weight_map" from tensors to {FILE} files beside it'
    return ModelUnavailable(f"{file_name(index)} is not an index of shards, {expected}; {CHECK}")
