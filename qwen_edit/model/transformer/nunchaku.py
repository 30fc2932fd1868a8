"""The nunchaku backend: the int4 checkpoint as it is, in the engine's own model and run by its kernels."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn

from qwen_edit.errors import ModelUnavailable
from qwen_edit.model.blank import WithoutMemory, assign_tensors
from qwen_edit.model.transformer.fused_attention import fuse_attention
from qwen_edit.model.transformer.nunchaku_engine import engine_class, fused_product
from qwen_edit.model.transformer.rotary import RotaryTable
from qwen_edit.svdq.checkpoint import CheckpointInfo

UNKNOWN_TO_ENGINE = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope", "guidance_embeds")
"""Fields of newer models that change what a forward computes, which the engine's does not know."""

LARGEST_BATCH = 8
"""Rows of the conditioning that the kernel of the modulations takes: `gemv_awq.cu` of release 1.2.1, which checks that
with an `assert` and so ends the process without an error of Python. The engine's asserts on a file's sizes hold for all
that pass `read_header`: widths are multiples of 128, groups have 64 weights, and ranks are multiples of 16."""


def load_nunchaku(
    info: CheckpointInfo, tensors: Mapping[str, Tensor], dtype: torch.dtype, *, fused_qkv: bool = False
) -> QwenImageTransformer2DModel:
    """Build the engine's transformer around what `engine_block` made of a checkpoint.

    Args:
        info: the checkpoint's header, which has passed `read_header`.
        tensors: its state dict, on the device where they will be computed with, or on the CPU for `offload_blocks`.
        dtype: of what is not quantized; the kernels want bfloat16, the file's own.
        fused_qkv: whether norm and rotation of queries and keys are done by the kernel of their product.

    Raises:
        ModelUnavailable: the engine is not there or another, or the file is of a model that it does not know.
    """
    for field in UNKNOWN_TO_ENGINE:
        if info.config[field]:
            raise ModelUnavailable(
                f"{info.file}: metadata 'config' has {field} {info.config[field]}, expected false: "
                "Nunchaku's engine does not know it; QWEN_EDIT_BACKEND=dense does"
            )
    model = engine_class()
    with WithoutMemory():
        # Not from_config, which does not see through the class's constructor and would build sixty default layers.
        transformer: QwenImageTransformer2DModel = model(**info.config)
        # Not the class's own `to`, with which diffusers warns of modules to keep in float32, of which there are none.
        nn.Module.to(transformer, dtype)
        transformer._patch_model(precision="int4", rank=info.rank)
    # The engine puts its W4A16 layers on the CPU, whatever is said here: like all else they are replaced now.
    assign_tensors(transformer, tensors, info.file)
    if fused_qkv:
        fuse_attention(transformer, fused_product(), info)
    else:
        transformer.pos_embed = RotaryTable(info.config["axes_dims_rope"])
    transformer.register_forward_pre_hook(_as_the_engine_takes_it, with_kwargs=True)
    return transformer


def offload_blocks(transformer: QwenImageTransformer2DModel) -> None:
    """Let the blocks wait in the host's pinned memory; the engine copies each ahead of its turn. CUDA only."""
    transformer.set_offload(True, num_blocks_on_gpu=1)


def _as_the_engine_takes_it(
    _transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Say how long the text is; diffusers 0.37 and later leave that to the shape of the embeddings.

    Raises:
        ValueError: the batch is larger than the engine's kernels take.
    """
    # The second argument of the stock forward, whose first is the picture's tokens.
    states = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
    batch, length = states.shape[:2]
    if batch > LARGEST_BATCH:
        raise ValueError(f"the batch has {batch} members, expected at most {LARGEST_BATCH} with the nunchaku backend")
    return args, {**kwargs, "txt_seq_lens": [length] * batch}
