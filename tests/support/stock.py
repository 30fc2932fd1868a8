"""What diffusers makes of a checkpoint by itself: the model that the backends are compared with."""

from pathlib import Path

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from qwen_edit.svdq import dense_state_dict, read_header


def stock_transformer(path: Path, dtype: torch.dtype = torch.float32) -> QwenImageTransformer2DModel:
    """The stock transformer with what a checkpoint means, its modulation layers among it, on the CPU."""
    transformer = QwenImageTransformer2DModel(**read_header(path).config).to(dtype)
    transformer.load_state_dict(dense_state_dict(path, dtype))
    return transformer.eval()
