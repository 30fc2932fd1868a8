"""The Qwen2.5-VL text encoder without its `lm_head`: the pipeline uses the last hidden state alone."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from qwen_edit.model.blank import WithoutMemory, assign_tensors
from qwen_edit.model.vision_windows import batch_windows
from qwen_edit.store.documents import file_name, read_object
from qwen_edit.store.fields import Table, integer, largest, misfit, number, part, several, take, word

ATTENTION = "sdpa"
"""PyTorch's own. Given no name, transformers takes the configuration's, which can be that of code on a hub."""

_UNUSED: Mapping[str, object] = MappingProxyType(
    {"use_cache": False, **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))}
)
"""What only writing text needs."""

_LARGEST_ID = 2**31 - 1
_TOKENS: Table = {
    field: integer(0, _LARGEST_ID)
    for field in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
}

_ROTARY: Table = {
    "rope_theta": number(1, 1e12),
    "rope_type": word("default", "mrope"),
    "type": word("default", "mrope"),
    "mrope_section": several(integer(1, 1024), 3, 3),
}


def load_text_encoder(folder: Path, tensors: Mapping[str, Tensor]) -> Qwen2_5_VLModel:
    """Build the text encoder around tensors that are on the device already.

    Args:
        folder: the base model's `text_encoder/`, for its `config.json`.
        tensors: those of its files that `is_used`, all of one dtype, in the published style of names (`model.*`,
            `visual.*`) or today's (`model.language_model.*`, `model.visual.*`).

    Raises:
        ModelUnavailable: the configuration cannot be used, or the tensors are not its own.
    """
    config = read_config(folder, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    with WithoutMemory():
        model = Qwen2_5_VLModel(config)
    batch_windows(model.visual)
    assign_tensors(model, model_names(tensors), "text_encoder")
    model.register_forward_pre_hook(_add_token_types, with_kwargs=True)
    return model


def read_config(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Qwen2_5_VLConfig:
    """What `config.json` says of the network's shape; attention, dtype and cache are not its business.

    Args:
        folder: the base model's `text_encoder/`.
        shapes: of each tensor of its weight files. No size is accepted that is larger than all of them, so that a
            number alone cannot ask for billions of modules.

    Raises:
        ModelUnavailable: the file is missing or damaged, or a value cannot be that of this network.
    """
    name = file_name(folder / "config.json")
    document = read_object(folder / "config.json")
    # Published with the text's fields in one object with all others, and since transformers 4.52 also in one of theirs.
    text = part(name, document, "text_config") or document
    config = Qwen2_5_VLConfig(
        **take(name, document, _TOKENS),
        text_config={**_UNUSED, **_text_fields(name, text, shapes), "rope_parameters": _rotary(name, text)},
        vision_config=_vision_fields(name, part(name, document, "vision_config"), shapes),
        attn_implementation=ATTENTION,
    )
    _check_text(name, config.text_config)
    _check_vision(name, config.vision_config)
    for field in _TOKENS:
        if (token := getattr(config, field)) >= (most := config.text_config.vocab_size):
            raise misfit(name, field, token, f"less than {most}, the vocab_size")
    return config


def model_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of `Qwen2_5_VLForConditionalGeneration`, of either style, to those of `Qwen2_5_VLModel`."""
    return {_model_name(name): tensor for name, tensor in tensors.items()}


def _text_fields(name: str, document: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    width = integer(1, largest(shapes))
    table: Table = {
        "vocab_size": width,
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": integer(1, max(1, len(shapes))),
        "num_attention_heads": width,
        "num_key_value_heads": width,
        "hidden_act": word("silu"),
        "max_position_embeddings": integer(1, 2**24),
        "rms_norm_eps": number(1e-12, 0.1),
    }
    if document.get("use_sliding_window"):
        raise misfit(name, "use_sliding_window", document["use_sliding_window"], "false")
    return take(name, document, table)


def _rotary(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's settings, which have had two names and two places."""
    newer, older = (part(name, document, field) for field in ("rope_parameters", "rope_scaling"))
    taken = {**take(name, document, {"rope_theta": _ROTARY["rope_theta"]}), **take(name, older or newer, _ROTARY)}
    return {"rope_theta": 1e6, **taken, "rope_type": "default"}


def _vision_fields(name: str, document: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    width = integer(1, largest(shapes))
    layers = max(1, len(shapes))
    table: Table = {
        "depth": integer(1, layers),
        "hidden_size": width,
        "hidden_act": word("silu"),
        "intermediate_size": width,
        "num_heads": width,
        "in_channels": integer(3, 3),
        "patch_size": integer(1, 64),
        "spatial_merge_size": integer(1, 8),
        "temporal_patch_size": integer(1, 8),
        "tokens_per_second": integer(1, 1000),
        "window_size": integer(1, 4096),
        "out_hidden_size": width,
        "fullatt_block_indexes": several(integer(0, layers), 0, layers),
    }
    return take(name, document, table)


def _check_text(name: str, config: Any) -> None:  # noqa: ANN401 - a configuration of transformers
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if config.hidden_size % (2 * heads):
        raise misfit(name, "num_attention_heads", heads, f"a divisor of half the hidden_size {config.hidden_size}")
    if heads % groups:
        raise misfit(name, "num_key_value_heads", groups, f"a divisor of num_attention_heads {heads}")
    half = config.hidden_size // heads // 2
    if sum(sections := config.rope_parameters.get("mrope_section", [16, 24, 24])) != half:
        raise misfit(name, "mrope_section", sections, f"a sum of {half}, half of a head's width")


def _check_vision(name: str, config: Any) -> None:  # noqa: ANN401 - a configuration of transformers
    if config.hidden_size % (4 * config.num_heads):
        raise misfit(name, "num_heads", config.num_heads, f"a divisor of a quarter of hidden_size {config.hidden_size}")
    if (least := config.spatial_merge_size * config.patch_size) > config.window_size:
        raise misfit(name, "window_size", config.window_size, f"at least {least}, the pixels of a merged patch")
    if any(index >= config.depth for index in config.fullatt_block_indexes):
        indexes = config.fullatt_block_indexes
        raise misfit(name, "fullatt_block_indexes", indexes, f"numbers less than {config.depth}, the depth")


def _model_name(name: str) -> str:
    if name.startswith(("model.visual.", "model.language_model.")):
        return name.removeprefix("model.")
    if name.startswith("model."):
        return "language_model." + name.removeprefix("model.")
    return name


def _add_token_types(
    model: Qwen2_5_VLModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Say which tokens are the picture's.

    From these transformers 5 derives the three-dimensional positions (M-RoPE) of the picture. Without them the
    positions fall back to those of plain text, which changes every edit without an error (huggingface/diffusers issue
    14194), so no caller can leave them out.
    """
    picture = (args[0] if args else kwargs["input_ids"]) == model.config.image_token_id
    return args, {**kwargs, "mm_token_type_ids": picture.to(torch.int32)}
