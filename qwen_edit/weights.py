"""safetensors files → tensors on the device."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qwen_edit.errors import ModelUnavailable


def read_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read every tensor of a model folder, floating point ones as `dtype`.

    Raises:
        ModelUnavailable: a shard is missing or damaged, or there is none.
    """
    tensors: dict[str, Tensor] = {}
    for shard in shards(folder):
        tensors.update(_read(shard, device))
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


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


def _read(shard: Path, device: torch.device) -> dict[str, Tensor]:
    name = f"{shard.parent.name}/{shard.name}"
    try:
        return load_file(shard, device=str(device))
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{name} is missing; fetch it with python -m builder bake") from error
    except (OSError, SafetensorError) as error:
        raise ModelUnavailable(
            f"{name} is damaged or cannot be read; fetch it again with python -m builder bake"
        ) from error
