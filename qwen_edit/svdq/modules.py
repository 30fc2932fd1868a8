"""What a checkpoint holds: the quantized modules of a block and every tensor's dtype and shape. No torch here."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

CONFIG_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "patch_size": 2,
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 60,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584,
        "guidance_embeds": False,
        "axes_dims_rope": (16, 56, 56),
        "zero_cond_t": False,
        "use_additional_t_cond": False,
        "use_layer3d_rope": False,
    }
)
"""The fields that `diffusers.QwenImageTransformer2DModel` takes and what it takes a missing one for."""

SVDQ_MODULES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "attn.to_qkv": (1, 3),
        "attn.add_qkv_proj": (1, 3),
        "attn.to_out.0": (1, 1),
        "attn.to_add_out": (1, 1),
        "img_mlp.net.0.proj": (1, 4),
        "img_mlp.net.2": (4, 1),
        "txt_mlp.net.0.proj": (1, 4),
        "txt_mlp.net.2": (4, 1),
    }
)
"""W4A4 layers with a low-rank branch: inputs and outputs in units of the model's width."""

AWQ_MODULES: Mapping[str, tuple[int, int]] = MappingProxyType({"img_mod.1": (1, 6), "txt_mod.1": (1, 6)})
"""W4A16 layers, the modulations: inputs and outputs in units of the model's width."""

SHIFTED_MODULES = ("img_mlp.net.2", "txt_mlp.net.2")
"""SVDQ layers behind a GELU: their input is shifted to be positive, so that it quantizes to unsigned 4 bits."""

FUSED_MODULES: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "attn.to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.add_qkv_proj": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    }
)
"""Layers that hold three stock layers, stacked on the outputs."""

NORMS = ("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k")

RANK_TENSOR = "transformer_blocks.0.attn.to_out.0.proj_down"
"""The tensor whose second dimension is taken for the rank of the file."""

_GROUP = 64
_ITEM_BYTES = {"I8": 1, "BF16": 2, "I32": 4}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the file: its safetensors dtype, its shape and, where a writer may pad it, the padded shape."""

    dtype: str
    shape: tuple[int, ...]
    padded: tuple[int, ...] | None = None

    @property
    def bytes(self) -> int:
        return tensor_bytes(self.dtype, self.shape)


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor of one of the format's dtypes: I8, I32, BF16."""
    return _ITEM_BYTES[dtype] * math.prod(shape)


def total_bytes(tensors: Mapping[str, TensorSpec]) -> int:
    """Bytes of all tensors, unpadded: the size of the file without its header."""
    return sum(spec.bytes for spec in tensors.values())


def block_prefix(block: int) -> str:
    """What the names of a block's tensors begin with."""
    return f"transformer_blocks.{block}."


def stock_modules(module: str) -> tuple[str, ...]:
    """The stock diffusers layers that a module of the file holds, in the order of its outputs."""
    return FUSED_MODULES.get(module, (module,))


def expected_tensors(config: Mapping[str, Any], rank: int) -> dict[str, TensorSpec]:
    """Every tensor that a checkpoint of this transformer config and low-rank rank holds, by name."""
    config = {**CONFIG_DEFAULTS, **config}
    block = _block_tensors(config, rank)
    tensors = top_level_tensors(config)
    for index in range(config["num_layers"]):
        tensors |= {block_prefix(index) + name: spec for name, spec in block.items()}
    return tensors


def top_level_tensors(config: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """The tensors outside of the blocks: bfloat16 under their stock diffusers names."""
    config = {**CONFIG_DEFAULTS, **config}
    width = _width(config)
    patch = config["patch_size"] ** 2 * (config["out_channels"] or config["in_channels"])
    tensors = {"txt_norm.weight": TensorSpec("BF16", (config["joint_attention_dim"],))}
    if config["use_additional_t_cond"]:
        tensors["time_text_embed.addition_t_embedding.weight"] = TensorSpec("BF16", (2, width))
    return tensors | {
        name: spec
        for module, inputs, outputs in (
            ("img_in", config["in_channels"], width),
            ("txt_in", config["joint_attention_dim"], width),
            # 256 is the number of sinusoids that diffusers embeds a timestep into
            ("time_text_embed.timestep_embedder.linear_1", 256, width),
            ("time_text_embed.timestep_embedder.linear_2", width, width),
            ("norm_out.linear", width, 2 * width),
            ("proj_out", width, patch),
        )
        for name, spec in _plain_linear(module, inputs, outputs).items()
    }


def _block_tensors(config: Mapping[str, Any], rank: int) -> dict[str, TensorSpec]:
    width = _width(config)
    tensors = {f"{name}.weight": TensorSpec("BF16", (config["attention_head_dim"],)) for name in NORMS}
    for module, (inputs, outputs) in SVDQ_MODULES.items():
        tensors |= _svdq_linear(module, inputs * width, outputs * width, rank)
    for module, (inputs, outputs) in AWQ_MODULES.items():
        tensors |= _awq_linear(module, inputs * width, outputs * width)
    return tensors


def _width(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"] * config["attention_head_dim"])


def _plain_linear(module: str, inputs: int, outputs: int) -> dict[str, TensorSpec]:
    return {
        f"{module}.weight": TensorSpec("BF16", (outputs, inputs)),
        f"{module}.bias": TensorSpec("BF16", (outputs,)),
    }


def _svdq_linear(module: str, inputs: int, outputs: int, rank: int) -> dict[str, TensorSpec]:
    return {
        f"{module}.qweight": TensorSpec("I8", (outputs, inputs // 2)),
        f"{module}.wscales": TensorSpec("BF16", (inputs // _GROUP, outputs)),
        f"{module}.bias": TensorSpec("BF16", (outputs,)),
        f"{module}.smooth_factor": TensorSpec("BF16", (inputs,)),
        f"{module}.smooth_factor_orig": TensorSpec("BF16", (inputs,)),
        f"{module}.proj_down": TensorSpec("BF16", (inputs, rank)),
        f"{module}.proj_up": TensorSpec("BF16", (outputs, rank)),
    }


def _awq_linear(module: str, inputs: int, outputs: int) -> dict[str, TensorSpec]:
    groups = inputs // _GROUP
    scales = TensorSpec("BF16", (groups, outputs), padded=(math.ceil(groups / 16) * 16, outputs))
    return {
        f"{module}.qweight": TensorSpec("I32", (outputs // 4, inputs // 2)),
        f"{module}.wscales": scales,
        f"{module}.wzeros": scales,
        f"{module}.bias": TensorSpec("BF16", (outputs,)),
    }
