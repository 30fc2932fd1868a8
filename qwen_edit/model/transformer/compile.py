"""The blocks of a dense transformer through `torch.compile`, which fuses what is between the matrix products.

It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for a GPU".
"""

from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn

from qwen_edit.model.transformer.rotary import Positions


def compile_blocks(transformer: QwenImageTransformer2DModel, **options: Any) -> None:  # noqa: ANN401 - handed on
    """Compile the block once for all of them, and for every length of the text and size of the picture.

    The compiler begins with the first pass. `torch._dynamo` has to be imported before diffusers is: only then do its
    functions carry the marks that say how to treat them.

    Args:
        transformer: from `build_dense`.
        options: of `torch.compile`.
    """
    transformer.pos_embed.register_forward_hook(_at_any_length)
    for embedding in (transformer.img_in, transformer.txt_in):
        embedding.register_forward_hook(_of_any_length)
    for block in transformer.transformer_blocks:
        block.compile(**options)


def _at_any_length(_module: nn.Module, _args: object, at: Positions) -> Positions:
    for positions in (at.picture, at.text):
        _any_length(positions, 0)
    return at


def _of_any_length(_module: nn.Module, _args: object, tokens: Tensor) -> Tensor:
    return _any_length(tokens, 1)


def _any_length(tensor: Tensor, axis: int) -> Tensor:
    """Tell the compiler that an axis has another length next time; else it finds out, and begins anew."""
    torch._dynamo.maybe_mark_dynamic(tensor, axis)
    return tensor
