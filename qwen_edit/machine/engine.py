"""Whether the engine is installed, found without importing it."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

HOW_TO_INSTALL = (
    "install the release wheel of github.com/nunchaku-ai/nunchaku for this Python and torch, "
    "not the unrelated package of that name on the package index"
)


@dataclass(frozen=True)
class Engine:
    """The installed `nunchaku`. `fault` says why it cannot be used, in words that follow "but"; None where it can."""

    version: str | None
    fault: str | None


def find_engine() -> Engine:
    """Look for the quantization engine without importing it, which takes seconds and needs CUDA.

    The unrelated package of the same name has no `models` package inside.
    """
    spec = find_spec("nunchaku")
    if spec is None:
        return Engine(None, "nunchaku is not installed")
    version = _version("nunchaku")
    if not _has_models(spec.submodule_search_locations or ()):
        return Engine(version, f"the nunchaku {version or 'of unknown version'} that is installed is another package")
    return Engine(version, _other_torch(version, _version("torch")))


def _has_models(folders: Iterable[str]) -> bool:
    return any((Path(folder) / "models" / "transformers").is_dir() for folder in folders)


def _other_torch(engine: str | None, torch: str | None) -> str | None:
    """Whether the wheel, whose version ends like `+cu12.8torch2.10`, was built for another torch than is installed."""
    _, named, built_for = (engine or "").partition("torch")
    if not named or torch is None or torch.split(".")[:2] == built_for.split(".")[:2]:
        return None
    return f"nunchaku {engine} was built for torch {built_for}, and torch {torch} is installed"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
