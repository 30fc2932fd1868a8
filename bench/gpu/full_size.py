"""A random model of the published sizes, in the production layout: what a GPU is measured with where no weights are.

Every file has the bytes of the published one but for headers and words: the checkpoint 12,653,943,936 in its tensors,
the text encoder 8.29 billion parameters. The numbers are drawn so that activations stay finite; what is painted is
noise. Values that are alike in distribution need no packing: a permutation of them is as good.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from bench.predict.arithmetic import LANGUAGE, VISION
from builder.made import layout
from qwen_edit.store.catalog import BASE_FOLDER, RANK, Checkpoint
from qwen_edit.svdq.dense import MODULATIONS, SCALES
from qwen_edit.svdq.layout import GROUP
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, TensorSpec, expected_tensors
from qwen_edit.svdq.quantize import write_checkpoint

DTYPES = {"I8": torch.int8, "I32": torch.int32, "BF16": torch.bfloat16}
SHARD_BYTES = 5 << 30

SIDE = 1024
"""Pixels of the usual picture's sides."""

NIBBLES = 4.61
"""The standard deviation of a uniform value of four bits: √((16² − 1) / 12)."""

MIDDLE = -7.5
"""And what shifts it to a mean of zero."""


@dataclass(frozen=True)
class Size:
    """The configurations of the three networks."""

    transformer: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    vae: Mapping[str, Any]


def full() -> Size:
    """As published."""
    small = layout.text_encoder_config(LANGUAGE["hidden_size"])
    text_encoder = {
        **small,
        "text_config": {**small["text_config"], **LANGUAGE},
        "vision_config": {**small["vision_config"], **VISION},
    }
    return Size(CONFIG_DEFAULTS, text_encoder, {})


def tiny() -> Size:
    """As small as the formats allow, to try the benchmark itself."""
    transformer = {**CONFIG_DEFAULTS, "num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 128}
    return Size(transformer, layout.text_encoder_config(128), {"base_dim": 8, "z_dim": 16, "num_res_blocks": 1})


def parameters(text_encoder: Mapping[str, Any]) -> int:
    """How many a text encoder of this configuration has."""
    return sum(map(math.prod, _shapes(text_encoder).values()))


def write(models: Path, size: Size, checkpoints: tuple[Checkpoint, ...], device: torch.device) -> None:
    """Write the model below `models`.

    Args:
        device: where the numbers are drawn; on a CPU the full size takes minutes.
    """
    torch.manual_seed(0)
    base = models / BASE_FOLDER
    layout.write_configurations(base, size.transformer)
    layout.write_tokenizer(base)
    vae = AutoencoderKLQwenImage(**size.vae)
    layout.write_vae(base / "vae", vae.config, vae)
    _write_text_encoder(base / "text_encoder", size.text_encoder, device)
    for checkpoint in checkpoints:
        path = models / checkpoint.path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, random_checkpoint(size.transformer, device), size.transformer, RANK)


def random_checkpoint(config: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU."""
    specs = expected_tensors(config, RANK)
    return {name: _drawn(name, spec, device).to(DTYPES[spec.dtype]).cpu() for name, spec in specs.items()}


def _drawn(name: str, spec: TensorSpec, device: torch.device) -> Tensor:
    part, shape, modulation = name.rpartition(".")[2], spec.shape, "_mod." in name
    if part == "qweight":
        values = torch.randint(0, 256, (spec.bytes,), dtype=torch.uint8, device=device)
        return values.view(DTYPES[spec.dtype]).view(shape)
    if part in ("wscales", "wzeros"):
        # A weight's deviation is one over the root of its inputs; that of a modulation a tenth, for sixty blocks.
        scale = (0.1 if modulation else 1.0) / (NIBBLES * math.sqrt(shape[0] * GROUP))
        return torch.full(shape, scale if part == "wscales" else MIDDLE * scale, device=device)
    if part.startswith("smooth_factor") or (part == "weight" and len(shape) == 1):
        return torch.ones(shape, device=device)
    drawn = torch.randn(shape, device=device)
    if part == "bias":
        return _with_ones(drawn * 0.01) if modulation else drawn * 0.01
    deviations = {"proj_up": 0.1 / math.sqrt(RANK), "proj_down": 1 / math.sqrt(shape[0])}
    return drawn * deviations.get(part, 1 / math.sqrt(shape[-1]))


def _with_ones(bias: Tensor) -> Tensor:
    """The format keeps the 1 of `x · (1 + scale)` in the bias."""
    bias.view(-1, MODULATIONS)[:, list(SCALES)] += 1
    return bias


def _write_text_encoder(folder: Path, config: Mapping[str, Any], device: torch.device) -> None:
    layout.write_json(folder / "config.json", config)
    shapes = _shapes(config)
    shards = list(_shards(shapes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(
            {name: _parameter(name, shapes[name], device) for name in names}, folder / file, metadata={"format": "pt"}
        )
        weight_map |= dict.fromkeys(names, file)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a text encoder, by its published name."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(dict(config)))
    return {layout.published_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """The names in order, in files of at most `SHARD_BYTES`."""
    names: list[str] = []
    filled = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if names and filled + size > SHARD_BYTES:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def _parameter(name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if len(shape) == 1:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.bfloat16)
    return (torch.randn(shape, dtype=torch.bfloat16, device=device) * 0.02).cpu()
