"""Is a file what the manifest promises? Each check returns a sentence on what is wrong, or None."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.catalog import CHECKPOINTS
from qwen_edit.store.files import open_file
from qwen_edit.store.manifest import Entry
from qwen_edit.store.shards import read_index
from qwen_edit.svdq.checkpoint import CheckpointError, read_header

SMALL = 64_000_000
"""Files up to this size, in bytes, are read whole even by the quick level, weights aside."""

READ = 4 << 20


def quick(models: Path, entry: Entry) -> str | None:
    """Size, and what the header of a weight file declares; the bytes of a small file of another kind."""
    try:
        return _size(models, entry) or _content(models, entry)
    except OSError as error:
        return f"{entry.path} cannot be read: {error.strerror}"


def hashed(models: Path, entry: Entry, advance: Callable[[int], None]) -> str | None:
    """Every byte, against the manifest's sha256."""
    digest = hashlib.sha256()
    buffer = bytearray(READ)
    view = memoryview(buffer)
    try:
        with open_file(models / entry.path) as stream:
            while count := stream.readinto(buffer):
                digest.update(view[:count])
                advance(count)
    except OSError as error:
        return f"{entry.path} cannot be read: {error.strerror}"
    if digest.hexdigest() != entry.sha256:
        return f"{entry.path} has sha256 {digest.hexdigest()[:12]}…, {entry.sha256[:12]}… in the manifest"
    return None


def index(models: Path, entry: Entry, promised: Mapping[str, bool]) -> tuple[str, str] | None:
    """The shards that an index names: each promised, and each tensor in the shard that the index names for it.

    `promised` says of each path in the manifest whether it passed `quick`; one that did not is not looked at again.
    Returns the path at fault and the sentence, or None.
    """
    folder = entry.path.rpartition("/")[0]
    try:
        shards = _by_shard(read_index(models / entry.path))
    except ModelUnavailable as error:
        return entry.path, f"{entry.path} does not hold what it should: {error.sentence}"
    for shard, tensors in sorted(shards.items()):
        path = f"{folder}/{shard}"
        if path not in promised:
            return path, f"{path} is not in the manifest, and {entry.path} needs it"
        if promised[path] and (lacking := tensors - _tensors(models / path)):
            return (
                path,
                f"{path} has no tensor {min(lacking)!r} ({len(lacking)} in all) that {entry.path} says it holds",
            )
    return None


def _size(models: Path, entry: Entry) -> str | None:
    path = models / entry.path
    if not path.exists():
        return f"{entry.path} is missing"
    if not path.is_file():
        return f"{entry.path} is not a file"
    # The weights' own readers do not say why a file cannot be opened.
    open_file(path).close()
    if (size := path.stat().st_size) != entry.bytes:
        return f"{entry.path} has {size:,} bytes, {entry.bytes:,} in the manifest"
    return None


def _content(models: Path, entry: Entry) -> str | None:
    checkpoint = next((row for row in CHECKPOINTS if row.path == entry.path), None)
    if checkpoint is not None:
        return _checkpoint(models / entry.path, entry, checkpoint.rank)
    if entry.path.endswith(".safetensors"):
        return _safetensors(models / entry.path, entry)
    return hashed(models, entry, lambda _: None) if entry.bytes <= SMALL else None


def _checkpoint(path: Path, entry: Entry, rank: int) -> str | None:
    try:
        info = read_header(path)
    except CheckpointError as error:
        return f"{entry.path} does not hold what it should: {error.sentence}"
    return None if info.rank == rank else f"{entry.path} has rank {info.rank}, expected {rank}"


def _safetensors(path: Path, entry: Entry) -> str | None:
    try:
        with safe_open(path, framework="numpy"):
            return None
    except SafetensorError as error:
        return f"{entry.path} has a header that cannot be true: {error}"


def _by_shard(index: Mapping[str, str]) -> dict[str, set[str]]:
    shards: dict[str, set[str]] = {}
    for tensor, shard in index.items():
        shards.setdefault(shard, set()).add(tensor)
    return shards


def _tensors(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return set()
