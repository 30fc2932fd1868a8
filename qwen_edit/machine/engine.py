"""Whether the engine is installed, found without importing it."""

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

HOW_TO_INSTALL = (
    "install the release wheel of github.com/nunchaku-ai/nunchaku for this Python and torch, "
    "not the unrelated package of that name on the package index"
)


FUSED_PRODUCT = "fused_qkv_norm_rottary"
"""The engine's operation for `QWEN_EDIT_FUSED_QKV=1`, of its module `nunchaku.ops.fused`."""


@dataclass(frozen=True)
class Engine:
    """The installed `nunchaku`.

    Attributes:
        fault: why it cannot be used, in words that follow "but"; None where it can.
        has_fused_product: whether its files name the operation. Whether it takes what it is called with shows when the
            engine is imported.
    """

    version: str | None
    fault: str | None
    has_fused_product: bool = True


def find_engine() -> Engine:
    """Look for the quantization engine without importing it, which takes seconds and needs CUDA.

    The unrelated package of the same name has no `models` package inside.
    """
    spec = find_spec("nunchaku")
    if spec is None:
        return Engine(None, "nunchaku is not installed")
    version, folders = _version("nunchaku"), [*map(Path, spec.submodule_search_locations or ())]
    if not any((folder / "models" / "transformers").is_dir() for folder in folders):
        return Engine(version, f"the nunchaku {version or 'of unknown version'} that is installed is another package")
    return Engine(version, _other_torch(version, _version("torch")), any(map(_names_product, folders)))


def _names_product(folder: Path) -> bool:
    """Whether the file where the operation stands, `ops/fused.py` or a compiled one, names it."""
    return any(FUSED_PRODUCT.encode() in file.read_bytes() for file in folder.glob("ops/fused.*"))


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
