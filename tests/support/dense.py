"""A checkpoint as stock tensors, its modulation layers among them, which serving keeps packed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from safetensors import safe_open
from torch import Tensor

from qwen_edit.model.blank import assign_tensors
from qwen_edit.model.transformer.dense import blank_dense
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.svdq.dense import dense_block, dense_modulation, dense_top_level
from qwen_edit.svdq.fp8 import FP8_MODULES, quantize_rows
from qwen_edit.svdq.modules import AWQ_MODULES, FUSED_MODULES, block_prefix, stock_modules, top_level_tensors

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
    """What `dense_block` gives under its stock names, and the modulation layers beside it."""
    return split(dense_block(packed, block, file, dtype)) | modulations(packed, block, dtype)


def split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of blocks of ours under their stock names: queries, keys and values are three layers there."""
    stock: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block, module, part = _parsed(name)
        names = stock_modules(module)
        stock |= {f"{block}{one}.{part}": rows for one, rows in zip(names, tensor.chunk(len(names)), strict=True)}
    return stock


def stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a stock transformer under the names of the dense backend's: the inverse of `split`."""
    ours = dict(tensors)
    for name in tensors:
        block, module, part = _parsed(name)
        for fused, names in FUSED_MODULES.items():
            if module == names[0]:
                ours[f"{block}{fused}.{part}"] = torch.cat([ours.pop(f"{block}{one}.{part}") for one in names])
    return ours


def dense_of(stock: torch.nn.Module, config: Mapping[str, Any], *, fp8: bool = False) -> QwenImageTransformer2DModel:
    """The dense backend's transformer with a copy of a stock one's weights, its modulations layers like others."""
    weights = {name: tensor.clone() for name, tensor in stacked(stock.state_dict()).items()}
    names = [f"{block_prefix(block)}{module}.weight" for block in range(config["num_layers"]) for module in FP8_MODULES]
    for name in names if fp8 else ():
        weights[name], weights[f"{name}_scale"] = quantize_rows(weights[name])
    return assign_tensors(blank_dense(config, fp8=fp8), weights, "stock")


def _parsed(name: str) -> tuple[str, str, str]:
    """The prefix of a tensor's block, the layer in it, and the part of that; outside of the blocks without a prefix."""
    module, part = name.rsplit(".", 1)
    if not name.startswith("transformer_blocks."):
        return "", module, part
    _, number, layer = module.split(".", 2)
    return block_prefix(int(number)), layer, part


def modulations(packed: Mapping[str, Tensor], block: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The modulation layers of one block, under their stock names."""
    layers: dict[str, Tensor] = {}
    for module in AWQ_MODULES:
        name = block_prefix(block) + module
        weight, bias = dense_modulation({part: packed[f"{name}.{part}"] for part in _PARTS})
        layers |= {f"{name}.weight": weight.to(dtype), f"{name}.bias": bias.to(dtype)}
    return layers
