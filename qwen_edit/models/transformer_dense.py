"""The dense backend: the int4 checkpoint expanded to diffusers' stock transformer, for devices without int4 kernels."""

from collections.abc import Mapping

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope, QwenImageTransformer2DModel
from torch import Tensor

from qwen_edit.models.assign import assign_tensors
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.dense import dense_block, dense_top_level
from qwen_edit.svdq.modules import top_level_tensors

ROPE_THETA = 10000  # what QwenImageTransformer2DModel hands to QwenEmbedRope


def load_dense(info: CheckpointInfo, packed: Mapping[str, Tensor], dtype: torch.dtype) -> QwenImageTransformer2DModel:
    """Build the stock transformer that computes what a checkpoint means.

    Args:
        info: the checkpoint's header, which has passed `read_header`.
        packed: its tensors, on the device where they are expanded, block by block.
        dtype: of the expanded weights.

    Raises:
        ModelUnavailable: a value in it gives no finite weight.
    """
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel.from_config(info.config)
    top_level = {name: packed[name] for name in top_level_tensors(info.config)}
    tensors = dense_top_level(top_level, info.file, dtype)
    for block in range(info.num_layers):
        tensors |= dense_block(packed, block, info.file, dtype)
    assign_tensors(transformer, tensors, info.file)
    # The rotary table is a plain attribute, no buffer, so nothing above has moved it off the meta device.
    transformer.pos_embed = QwenEmbedRope(ROPE_THETA, list(transformer.config.axes_dims_rope), scale_rope=True)
    return transformer
