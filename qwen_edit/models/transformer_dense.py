"""The dense backend: the int4 checkpoint expanded to diffusers' stock transformer, for devices without int4 kernels."""

from pathlib import Path

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope, QwenImageTransformer2DModel

from qwen_edit.models.assign import assign_tensors
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.svdq.dense import dense_state_dict

ROPE_THETA = 10000  # what QwenImageTransformer2DModel hands to QwenEmbedRope


def load_dense(path: Path, device: torch.device, dtype: torch.dtype) -> QwenImageTransformer2DModel:
    """Build the stock transformer that computes what the checkpoint at `path` means.

    Raises:
        ModelUnavailable: the file is not a whole SVDQuant int4 checkpoint; see `qwen_edit.svdq`.
    """
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel.from_config(read_header(path).config)
    tensors = {name: tensor.to(device) for name, tensor in dense_state_dict(path, dtype).items()}
    assign_tensors(transformer, tensors, path.name)
    # The rotary table is a plain attribute, no buffer, so nothing above has moved it off the meta device.
    transformer.pos_embed = QwenEmbedRope(ROPE_THETA, list(transformer.config.axes_dims_rope), scale_rope=True)
    return transformer
