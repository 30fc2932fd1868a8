"""What lies in the model directory, looked at before anything is loaded from it. No torch here."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.catalog import BASE_FOLDER, CHECKPOINTS, Checkpoint
from qwen_edit.store.documents import CHECK, file_name
from qwen_edit.store.files import MOST_BYTES, file_size
from qwen_edit.store.manifest import Entry, Manifest, ManifestError
from qwen_edit.store.shards import shards

BASE_FILES = (
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "processor/preprocessor_config.json",
    "text_encoder/config.json",
    "vae/config.json",
)
"""What is read of the base model beside its weights."""


UNUSED = "lm_head."
"""What the names of the text encoder's tensors begin with that only writing text needs: 1.1 GB in the published one."""


def is_used(tensor: str) -> bool:
    """Whether the base model's tensor of this name is needed."""
    return not tensor.startswith(UNUSED)


def available(models: Path) -> tuple[Checkpoint, ...]:
    """The checkpoints whose file lies below a model directory, the preferred one first."""
    return tuple(checkpoint for checkpoint in CHECKPOINTS if file_size(models / checkpoint.path) is not None)


def require_checkpoints(models: Path) -> tuple[Checkpoint, ...]:
    """The checkpoints that are there, the preferred one first.

    Raises:
        ModelUnavailable: there is none.
    """
    if not _is_folder(models):
        raise ModelUnavailable(
            "the folder that MODEL_CACHE_DIR names does not exist; fill it with python -m builder bake"
        )
    on_disk = available(models)
    if not on_disk:
        raise ModelUnavailable("there is no checkpoint in MODEL_CACHE_DIR; fetch one with python -m builder bake")
    return on_disk


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


@dataclass(frozen=True)
class BaseWeights:
    """The weight files of the base model."""

    text_encoder: tuple[Path, ...]
    vae: tuple[Path, ...]

    def __iter__(self) -> Iterator[Path]:
        """In the order in which they are needed."""
        return iter((*self.text_encoder, *self.vae))


def base_weights(models: Path) -> BaseWeights:
    """The weight files of the base model.

    Raises:
        ModelUnavailable: one of them, or a file that is read beside them, is not there or is no regular file, or one
            that is read beside them is larger than any of its kind.
    """
    base = models / BASE_FOLDER
    _require((base / name for name in BASE_FILES), MOST_BYTES)
    weights = BaseWeights(tuple(shards(base / "text_encoder")), tuple(shards(base / "vae")))
    _require(weights)
    return weights


def _require(files: Iterable[Path], most: int | None = None) -> None:
    for path in files:
        name, size = file_name(path), file_size(path)
        if size is None:
            raise ModelUnavailable(
                f"the base model has no {name} in MODEL_CACHE_DIR; fetch it with python -m builder bake"
            )
        if most is not None and size > most:
            raise ModelUnavailable(f"the base model's {name} has {size} bytes, expected at most {most}; {CHECK}")


def read_manifest(models: Path) -> Manifest | None:
    """What the builder promised, or None where it promised nothing.

    Raises:
        ModelUnavailable: the manifest cannot be read.
    """
    try:
        return Manifest.read(models)
    except ManifestError as error:
        raise ModelUnavailable(f"{error}; write it again with python -m builder bake") from error


def broken_promises(models: Path, manifest: Manifest | None) -> Iterator[tuple[Entry, str]]:
    """Each entry of the manifest whose file is not there in its size, with a sentence about it."""
    for entry in manifest.files if manifest else ():
        size = file_size(models / entry.path)
        if size != entry.bytes:
            found = "missing" if size is None else f"{size} bytes long"
            promised = f"the manifest promises {entry.bytes} bytes"
            yield entry, f"{entry.path} is {found}, {promised}; run python -m builder {entry.command}"


def is_whole(models: Path) -> bool:
    """Whether the base model and a checkpoint are there as the manifest promises."""
    try:
        manifest = read_manifest(models)
        base_weights(models)
        require_checkpoints(models)
    except ModelUnavailable:
        return False
    return manifest is not None and not any(broken_promises(models, manifest))
