"""Which files make up a model folder. No torch here: they are warmed in the page cache before it is imported."""

import json
from pathlib import Path

from qwen_edit.errors import ModelUnavailable


def shards(folder: Path) -> list[Path]:
    """The safetensors files that make up a model folder: those its index names, else the only one there.

    Raises:
        ModelUnavailable: there is no shard, or the index cannot be read.
    """
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is None:
        found = sorted(folder.glob("*.safetensors"))
    else:
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            found = [folder / Path(str(name)).name for name in sorted(names)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelUnavailable(f"{folder.name}/{index.name} is not an index of shards") from error
    if not found:
        raise ModelUnavailable(f"{folder.name} has no .safetensors file; fetch it with python -m builder bake")
    return found
