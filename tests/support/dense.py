"""A checkpoint as stock tensors, its modulation layers among them, which serving keeps packed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.svdq.dense import dense_block, dense_modulation, dense_top_level
from qwen_edit.svdq.modules import AWQ_MODULES, block_prefix, top_level_tensors

_PARTS = ("qweight", "wscales", "wzeros", "bias")


def dense_state_dict(path: Path | str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The state dict of `QwenImageTransformer2DModel(**read_header(path).config)`, in `dtype` on the CPU."""
    info = read_header(path)
    with safe_open(path, framework="pt") as file:
        dense = dense_top_level(
            {name: file.get_tensor(name) for name in top_level_tensors(info.config)}, info.file, dtype
        )
        for block in range(info.num_layers):
            names = [name for name in info.tensors if name.startswith(block_prefix(block))]
            dense |= whole_block({name: file.get_tensor(name) for name in names}, block, info.file, dtype)
    return dense


def whole_block(
    packed: Mapping[str, Tensor], block: int, file: str, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """What `dense_block` gives, and the modulation layers beside it."""
    return dense_block(packed, block, file, dtype) | modulations(packed, block, dtype)


def modulations(packed: Mapping[str, Tensor], block: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The modulation layers of one block, under their stock names."""
    layers: dict[str, Tensor] = {}
    for module in AWQ_MODULES:
        name = block_prefix(block) + module
        weight, bias = dense_modulation({part: packed[f"{name}.{part}"] for part in _PARTS})
        layers |= {f"{name}.weight": weight.to(dtype), f"{name}.bias": bias.to(dtype)}
    return layers
