"""The blocks of a dense transformer through `torch.compile`, which fuses what is between the matrix products.

It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for a GPU".
"""

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn


def compile_blocks(transformer: QwenImageTransformer2DModel, **options: Any) -> None:  # noqa: ANN401 - handed on
    """Compile the block once for all of them, and for every length of the text and size of the picture.

    The compiler begins with the first pass. `torch._dynamo` has to be imported before diffusers is: only then do its
    functions carry the marks that say how to treat them.

    Args:
        options: of `torch.compile`.
    """
    for block in transformer.transformer_blocks:
        block.attn.set_processor(JointAttention())
    transformer.pos_embed.register_forward_hook(_in_real_numbers)
    for embedding in (transformer.img_in, transformer.txt_in):
        embedding.register_forward_hook(_of_any_length)
    transformer.compile_repeated_blocks(**options)


class JointAttention:
    """Text and picture attend to each other, as in diffusers' `QwenDoubleStreamAttnProcessor2_0`.

    The rotary embedding is in real numbers: complex ones the compiler leaves as they are.
    """

    _attention_backend: Any = None  # which diffusers' `set_attention_backend` sets
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,  # noqa: ARG002 - the stock signature
        encoder_hidden_states_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            hidden_states: of the picture, [batch, tokens, width].
            encoder_hidden_states: of the text, likewise.
            encoder_hidden_states_mask: true where a text token counts, [batch, tokens].
            image_rotary_emb: cosines and sines of the picture's positions and of the text's, [tokens, channels / 2, 2].

        Returns:
            What is added to the picture, and to the text.
        """
        if image_rotary_emb is None:
            raise ValueError("the positions of picture and text are missing")
        split = (-1, attn.inner_dim // attn.heads)
        picture = [layer(hidden_states).unflatten(-1, split) for layer in (attn.to_q, attn.to_k, attn.to_v)]
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text = [layer(encoder_hidden_states).unflatten(-1, split) for layer in added]
        at_picture, at_text = image_rotary_emb
        attended = dispatch_attention_fn(
            torch.cat(
                [rotated(attn.norm_added_q(text[0]), at_text), rotated(attn.norm_q(picture[0]), at_picture)], dim=1
            ),
            torch.cat(
                [rotated(attn.norm_added_k(text[1]), at_text), rotated(attn.norm_k(picture[1]), at_picture)], dim=1
            ),
            torch.cat([text[2], picture[2]], dim=1),
            attn_mask=_joint_mask(encoder_hidden_states_mask, hidden_states),
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        of_text, of_picture = attended.flatten(2).split([text[0].shape[1], picture[0].shape[1]], dim=1)
        return attn.to_out[0](of_picture.contiguous()), attn.to_add_out(of_text.contiguous())


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Turn each pair of channels by the angle of its position.

    Args:
        x: [batch, tokens, heads, channels].
        positions: cosine and sine, float32 [tokens, channels / 2, 2].
    """
    cosine, sine = positions[:, None].unbind(-1)  # [tokens, 1, channels / 2]
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2).to(x.dtype)


def _joint_mask(mask: Tensor | None, picture: Tensor) -> Tensor | None:
    """[batch, 1, 1, text and picture tokens]; every token of a picture counts."""
    if mask is None:
        return None
    return torch.cat([mask, mask.new_ones(picture.shape[:2])], dim=1)[:, None, None]


def _in_real_numbers(_module: nn.Module, _args: object, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return tuple(_any_length(torch.view_as_real(one), 0) for one in positions)


def _of_any_length(_module: nn.Module, _args: object, tokens: Tensor) -> Tensor:
    return _any_length(tokens, 1)


def _any_length(tensor: Tensor, axis: int) -> Tensor:
    """Tell the compiler that an axis has another length next time; else it finds out, and begins anew."""
    torch._dynamo.maybe_mark_dynamic(tensor, axis)
    return tensor
