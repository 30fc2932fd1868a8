"""The inverse of `dense`: quantizes a stock transformer into the format, for models of any size, tiny ones above all.

The smooth factors come from the weights alone. Production checkpoints calibrate theirs on activations, so this is no
way to make one.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from qwen_edit.svdq import layout
from qwen_edit.svdq.dense import ACTIVATION_SHIFT, MODULATIONS, SCALES
from qwen_edit.svdq.modules import (
    AWQ_MODULES,
    CONFIG_DEFAULTS,
    NORMS,
    SHIFTED_MODULES,
    SVDQ_MODULES,
    block_prefix,
    stock_modules,
    top_level_tensors,
)

_DTYPES = {torch.bfloat16: "BF16", torch.int32: "I32", torch.int8: "I8"}
_LEAST_SCALE = torch.finfo(torch.bfloat16).tiny  # a group of zeros still needs a scale to divide by


def quantize(state_dict: Mapping[str, Tensor], config: Mapping[str, Any], rank: int = 128) -> dict[str, Tensor]:
    """Quantize a stock `QwenImageTransformer2DModel`; the same weights give the same tensors.

    Args:
        state_dict: of the model, in any float dtype.
        config: of the model; only the fields in `modules.CONFIG_DEFAULTS` matter.
        rank: of the low-rank branch, a multiple of 16.

    Returns:
        The tensors that `modules.expected_tensors(config, rank)` describes, on the CPU.
    """
    config = {**CONFIG_DEFAULTS, **config}
    tensors = {name: _stored(state_dict[name]) for name in top_level_tensors(config)}
    for block in range(config["num_layers"]):
        tensors |= _quantize_block(state_dict, block_prefix(block), rank)
    return tensors


def quantize_svdq(weight: Tensor, bias: Tensor, rank: int, shift: float = 0.0) -> dict[str, Tensor]:
    """Pack a plain layer, weight [N, K] and bias [N], so that `dense.dense_svdq` gives it back nearly.

    The low-rank branch takes the largest singular directions; the residual is taken from the factors as they are
    stored, so their rounding is made up for, and the stored bias makes up for the shift of the input. All is
    computed in float64: how threads share the sums then changes no number that is stored.
    """
    weight, bias = weight.double(), bias.double()
    up, down = _low_rank(weight, rank)
    smooth = _smooth_factor(weight)
    values, scales = _round_to_int4((weight - up.double() @ down.double().T) * smooth.double())
    residual = _rescale(values, scales) / smooth.double()
    return {
        "qweight": layout.pack_qweight(values),
        "wscales": layout.pack_wscales(scales),
        "bias": layout.pack_vector(_stored(bias - shift * residual.sum(dim=1))),
        "smooth_factor": layout.pack_vector(smooth),
        "smooth_factor_orig": layout.pack_vector(smooth),
        "proj_down": layout.pack_proj_down(down),
        "proj_up": layout.pack_proj_up(up),
    }


def quantize_modulation(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Pack a stock modulation layer, weight [6d, d] and bias [6d], in the channel order of the format."""
    bias = bias.view(MODULATIONS, -1).clone()
    bias[list(SCALES)] += 1
    weight = weight.view(MODULATIONS, -1, weight.shape[1]).transpose(0, 1).flatten(0, 1)
    groups = _groups(weight)
    # 15 levels: seven below zero, eight above
    scales = _stored(torch.maximum(groups.amax(dim=2) / 8, -groups.amin(dim=2) / 7).clamp(min=_LEAST_SCALE))
    zeros = -7 * scales
    values = ((groups - zeros.float()[:, :, None]) / scales.float()[:, :, None]).round().clamp(0, 15)
    return {
        "qweight": layout.pack_awq_qweight(values.flatten(1).to(torch.uint8)),
        "wscales": scales.T.contiguous(),
        "wzeros": zeros.T.contiguous(),
        "bias": _stored(bias.T.flatten()),
    }


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], rank: int) -> None:
    """Write the tensors as a checkpoint; the same arguments give the same bytes in every process.

    safetensors' own writer orders the metadata at random, so the header is written here.
    """
    # The widest items first, as safetensors does: then each tensor is aligned to its items
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    text = json.dumps(_header(names, tensors, _metadata(config, rank)), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(tensors[name].flatten().view(torch.uint8).numpy().data)


def _quantize_block(state_dict: Mapping[str, Tensor], prefix: str, rank: int) -> dict[str, Tensor]:
    tensors = {f"{prefix}{norm}.weight": _stored(state_dict[f"{prefix}{norm}.weight"]) for norm in NORMS}
    for module in SVDQ_MODULES:
        weight, bias = _plain_layer(state_dict, prefix, module)
        shift = ACTIVATION_SHIFT if module in SHIFTED_MODULES else 0.0
        tensors |= _named(prefix + module, quantize_svdq(weight, bias, rank, shift))
    for module in AWQ_MODULES:
        tensors |= _named(prefix + module, quantize_modulation(*_plain_layer(state_dict, prefix, module)))
    return tensors


def _plain_layer(state_dict: Mapping[str, Tensor], prefix: str, module: str) -> tuple[Tensor, Tensor]:
    names = [prefix + name for name in stock_modules(module)]
    weight = torch.cat([state_dict[f"{name}.weight"].float().cpu() for name in names])
    return weight, torch.cat([state_dict[f"{name}.bias"].float().cpu() for name in names])


def _named(module: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{module}.{name}": tensor for name, tensor in parts.items()}


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.bfloat16)


def _low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U [N, R] and D [K, R] in bfloat16 with U Dᵀ near the weight, padded with zeros beyond the weight's own rank."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank].sqrt(), right[:rank].T
    # A singular pair is known up to its sign: make the largest entry on the left positive
    largest = left.abs().argmax(dim=0, keepdim=True)
    signed = values * left.gather(0, largest)[0].sign()
    missing = (0, rank - values.numel())
    return _stored(pad(left * signed, missing)), _stored(pad(right * signed, missing))


def _smooth_factor(weight: Tensor) -> Tensor:
    """One divisor an input [K], bfloat16: the root of mean over largest weight, so that columns become more alike."""
    largest = weight.abs().amax(dim=0)
    mean = largest.mean().clamp(min=_LEAST_SCALE)
    return _stored((mean / largest.clamp(min=mean / 1024)).sqrt())


def _round_to_int4(residual: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] in -8…7 and its bfloat16 scales [N, K/64], as fine as each group lets them be."""
    groups = _groups(residual)
    largest = torch.maximum(groups.amax(dim=2) / 7, -groups.amin(dim=2) / 8)
    scales = _stored(largest.clamp(min=_LEAST_SCALE))
    values = (groups / scales.double()[:, :, None]).round().clamp(-8, 7)
    return values.flatten(1).to(torch.int8), scales


def _rescale(values: Tensor, scales: Tensor) -> Tensor:
    return (_groups(values.double()) * scales.double()[:, :, None]).flatten(1)


def _groups(weight: Tensor) -> Tensor:
    return weight.view(weight.shape[0], -1, layout.GROUP)


def _metadata(config: Mapping[str, Any], rank: int) -> dict[str, str]:
    known = {field: config.get(field, default) for field, default in CONFIG_DEFAULTS.items()}
    quantization = {"method": "svdquant", "rank": rank, "weight": {"dtype": "int4", "group_size": layout.GROUP}}
    return {
        "config": json.dumps(known),
        "model_class": "NunchakuQwenImageTransformer2DModel",
        "quantization_config": json.dumps(quantization),
    }


def _header(names: list[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    return header
