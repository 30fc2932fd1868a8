"""The Qwen2.5-VL text encoder without its `lm_head`: the pipeline uses the last hidden state alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from qwen_edit.model.blank import WithoutMemory, assign_tensors
from qwen_edit.model.vision_windows import batch_windows


def load_text_encoder(folder: Path, tensors: Mapping[str, Tensor]) -> Qwen2_5_VLModel:
    """Build the text encoder around tensors that are on the device already.

    Args:
        folder: the base model's `text_encoder/`, for its `config.json`.
        tensors: those of its files that `is_used`, all of one dtype, in the published style of names (`model.*`,
            `visual.*`) or today's (`model.language_model.*`, `model.visual.*`).

    Raises:
        ModelUnavailable: the tensors are not those of the configuration.
    """
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    config.text_config.use_cache = False
    with WithoutMemory():
        model = Qwen2_5_VLModel(config)
    batch_windows(model.visual)
    assign_tensors(model, model_names(tensors), "text_encoder")
    model.register_forward_pre_hook(_add_token_types, with_kwargs=True)
    return model


def model_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of `Qwen2_5_VLForConditionalGeneration`, of either style, to those of `Qwen2_5_VLModel`."""
    return {_model_name(name): tensor for name, tensor in tensors.items()}


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
