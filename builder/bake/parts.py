"""What a bake brings: the parts of a model directory, each small enough to be an image layer of its own."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from builder.bake.errors import UsageError
from qwen_edit.store import catalog

Kind = Literal["base", "checkpoints"]


@dataclass(frozen=True)
class Part:
    """Some files of one repository. `required` and `optional` are patterns of paths inside it.

    Each required pattern must match a file; a `*` also matches slashes.
    """

    name: str
    kind: Kind
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def repository(self) -> str:
        """The hub's `owner/name`."""
        return REPOSITORIES[self.kind]

    @property
    def folder(self) -> str:
        """Where the repository's files lie below the model directory."""
        return FOLDERS[self.kind]

    def wants(self, path: str) -> bool:
        """Whether the repository's file at `path` belongs to this part."""
        return any(fnmatchcase(path, pattern) for pattern in self.required + self.optional)

    def holds(self, local: str) -> bool:
        """Whether the file at `local`, below the model directory, belongs to this part."""
        folder, _, path = local.partition("/")
        return folder == self.folder and self.wants(path)

    def lacks(self, paths: Iterable[str]) -> list[str]:
        """The required patterns that match none of the repository's `paths`."""
        known = tuple(paths)
        return [pattern for pattern in self.required if not any(fnmatchcase(path, pattern) for path in known)]


REPOSITORIES: dict[Kind, str] = {"base": catalog.BASE_REPOSITORY, "checkpoints": catalog.CHECKPOINT_REPOSITORY}
FOLDERS: dict[Kind, str] = {"base": catalog.BASE_FOLDER, "checkpoints": catalog.CHECKPOINT_FOLDER}

SHARDS = 4
"""Weight files of the text encoder as published, of at most 5 GB each."""

# Of the transformer the configuration alone: an int4 checkpoint stands in for its 40.9 GB of weights.
CONFIGS = Part(
    name="configs",
    kind="base",
    required=(
        "model_index.json",
        "scheduler/*.json",
        "tokenizer/*.json",
        "processor/*.json",
        "text_encoder/config.json",
        "vae/config.json",
        "transformer/config.json",
    ),
    optional=("tokenizer/*.txt", "tokenizer/*.jinja", "processor/*.txt", "processor/*.jinja", "text_encoder/*.json"),
)
TEXT_ENCODER = Part("text_encoder", "base", ("text_encoder/model*.safetensors",))
TEXT_ENCODER_SHARDS = tuple(
    Part(f"text_encoder-{number}", "base", (f"text_encoder/model-{number:05}-of-{SHARDS:05}.safetensors",))
    for number in range(1, SHARDS + 1)
)
VAE = Part("vae", "base", ("vae/diffusion_pytorch_model.safetensors",))
CHECKPOINTS = tuple(Part(checkpoint.name, "checkpoints", (checkpoint.file,)) for checkpoint in catalog.CHECKPOINTS)

BASE = (CONFIGS, TEXT_ENCODER, VAE)
"""What the base model needs to be whole."""

COMPONENTS = {part.name: part for part in (CONFIGS, TEXT_ENCODER, *TEXT_ENCODER_SHARDS, VAE, *CHECKPOINTS)}
"""Every name that `--components` takes."""

CHECKPOINT_NAMES = tuple(part.name for part in CHECKPOINTS)


def select(components: Sequence[str], checkpoints: Sequence[str]) -> tuple[Part, ...]:
    """The parts to bake: `components`, or all of them where it is empty, less the checkpoints that were not chosen.

    Raises:
        UsageError: a name that does not exist.
    """
    for name in checkpoints:
        if name not in CHECKPOINT_NAMES:
            raise UsageError(_no_checkpoint(name))
    for name in components:
        if name not in COMPONENTS:
            raise UsageError(f"--components has {name!r}, expected some of {', '.join(COMPONENTS)}")
    names = dict.fromkeys(components or [part.name for part in (*BASE, *CHECKPOINTS)])
    left_out = set(CHECKPOINT_NAMES) - set(checkpoints)
    return tuple(COMPONENTS[name] for name in names if name not in left_out)


def component_of(local: str) -> Part | None:
    """The component to bake again when the file at `local`, below the model directory, is bad."""
    return next((part for part in (*BASE, *CHECKPOINTS) if part.holds(local)), None)


def _no_checkpoint(name: str) -> str:
    exist = " and ".join(f"{checkpoint.name} ({checkpoint.file})" for checkpoint in catalog.CHECKPOINTS)
    return f"--checkpoints has {name!r}, {_reason(name)}; what exists is {exist}"


def _reason(name: str) -> str:
    numbers = {int(digits) for digits in re.findall(r"\d+", name)}
    if ranks := sorted(numbers & set(catalog.OLD_RANKS)):
        return f"and rank {ranks[0]} is left out on purpose: rank {catalog.RANK} alone is served"
    if re.search(rf"(?<!\d){catalog.OLD_STEPS}[-_ ]?steps?", name):
        return f"and {catalog.OLD_STEPS}-step files are left out on purpose"
    return "which is not in the catalog"
