"""A block of the dense backends: what diffusers' `QwenImageTransformerBlock` computes, in fewer passes over memory.

The layers have the names of the int4 file, in which queries, keys and values are one layer.

It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for a GPU".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from qwen_edit.model.transformer.fused.choose import PLAIN, Kernels
from qwen_edit.model.transformer.rotary import Positions

EPS = 1e-6
"""Of every norm, as in the stock block."""


class Block(nn.Module):
    """Picture and text attend to each other; each has its own weights and its own MLP."""

    def __init__(self, heads: int, channels: int, kernels: Kernels = PLAIN, *, zero_cond_t: bool = False) -> None:
        """Make a block of the width `heads · channels`.

        Args:
            heads: of the attention.
            channels: of a head.
            kernels: what computes between the matrix products.
            zero_cond_t: whether the tokens of the pictures to edit are modulated as at timestep 0.
        """
        super().__init__()
        width = heads * channels
        self.img_mod: nn.Module = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.txt_mod: nn.Module = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.attn = JointAttention(heads, channels, kernels)
        self.img_mlp = FeedForward(width)
        self.txt_mlp = FeedForward(width)
        self._zero_cond_t = zero_cond_t
        self._modulate, self._gated = kernels.modulate, kernels.gated

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None,
        temb: Tensor,
        image_rotary_emb: Positions,
        joint_attention_kwargs: object = None,  # noqa: ARG002 - the stock signature
        modulate_index: object = None,  # noqa: ARG002 - the positions say it without a tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the block, as the stock transformer calls its own.

        Args:
            hidden_states: of the picture, [batch, tokens, width].
            encoder_hidden_states: of the text, likewise.
            encoder_hidden_states_mask: true where a text token counts, [batch, tokens]; all count where left out.
            temb: the conditioning that the modulations see, [rows, width].
            image_rotary_emb: from `RealRotaryTable`.

        Returns:
            The text, then the picture.
        """
        picture, text, at = hidden_states, encoder_hidden_states, image_rotary_emb
        drawn = at.drawn if self._zero_cond_t else None
        of_picture = self.img_mod(temb).chunk(2, dim=-1)
        of_text = self.txt_mod(temb.chunk(2)[0] if self._zero_cond_t else temb).chunk(2, dim=-1)
        to_picture, to_text = self.attn(
            self._modulated(picture, of_picture[0], drawn),
            self._modulated(text, of_text[0]),
            at,
            encoder_hidden_states_mask,
        )
        picture, text = (
            self._updated(picture, of_picture[0], to_picture, drawn),
            self._updated(text, of_text[0], to_text),
        )
        to_picture = self.img_mlp(self._modulated(picture, of_picture[1], drawn))
        to_text = self.txt_mlp(self._modulated(text, of_text[1]))
        return self._updated(text, of_text[1], to_text), self._updated(picture, of_picture[1], to_picture, drawn)

    def _modulated(self, x: Tensor, rows: Tensor, drawn: int | None = None) -> Tensor:
        """Norm and modulate a stream.

        Args:
            rows: shift, scale and gate, [1 or batch, 3 · width]; twice as many rows where `drawn` is given.
            drawn: how many of the tokens the first half of the rows is for; the second half is for the rest.
        """
        if drawn is not None:
            first, rest = rows.chunk(2)
            return torch.cat([self._modulated(x[:, :drawn], first), self._modulated(x[:, drawn:], rest)], dim=1)
        shift, scale, _ = rows[:, None].chunk(3, dim=-1)
        return self._modulate(x, scale, shift, EPS)

    def _updated(self, x: Tensor, rows: Tensor, update: Tensor, drawn: int | None = None) -> Tensor:
        """Add to a stream through its gate; see `_modulated`."""
        if drawn is not None:
            first, rest = rows.chunk(2)
            halves = (
                self._updated(x[:, :drawn], first, update[:, :drawn]),
                self._updated(x[:, drawn:], rest, update[:, drawn:]),
            )
            return torch.cat(halves, dim=1)
        return self._gated(x, rows[:, None].chunk(3, dim=-1)[2], update)


class JointAttention(nn.Module):
    """The attention of text and picture together, with one product for queries, keys and values of each."""

    def __init__(self, heads: int, channels: int, kernels: Kernels) -> None:
        super().__init__()
        width = heads * channels
        self._norm_rotate = kernels.norm_rotate
        self.to_qkv = nn.Linear(width, 3 * width)
        self.add_qkv_proj = nn.Linear(width, 3 * width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = nn.Linear(width, width)
        self.norm_q, self.norm_k = nn.RMSNorm(channels), nn.RMSNorm(channels)
        self.norm_added_q, self.norm_added_k = nn.RMSNorm(channels), nn.RMSNorm(channels)
        self._heads = (3, heads, channels)

    def forward(self, picture: Tensor, text: Tensor, at: Positions, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is added to the picture, and to the text; see `Block.forward` for the shapes."""
        q, k, v = self.to_qkv(picture).unflatten(-1, self._heads).unbind(2)  # [batch, tokens, heads, channels]
        added_q, added_k, added_v = self.add_qkv_proj(text).unflatten(-1, self._heads).unbind(2)
        attended = _attended(
            self._joined(added_q, q, (self.norm_added_q, self.norm_q), at),
            self._joined(added_k, k, (self.norm_added_k, self.norm_k), at),
            torch.cat([added_v, v], dim=1),
            mask,
        )
        of_text, of_picture = attended[:, : text.shape[1]], attended[:, text.shape[1] :]
        # A part of a batch has gaps, for which a linear layer would add its bias in a pass of its own.
        return self.to_out[0](of_picture.contiguous()), self.to_add_out(of_text.contiguous())

    def _joined(self, text: Tensor, picture: Tensor, norms: tuple[nn.RMSNorm, nn.RMSNorm], at: Positions) -> Tensor:
        """Queries or keys, normed and turned to where attention reads them: the text's, then the picture's."""
        batch, length, *head = text.shape
        joint = text.new_empty(batch, length + picture.shape[1], *head)
        self._norm_rotate(text, norms[0].weight, EPS, at.text, joint[:, :length])
        self._norm_rotate(picture, norms[1].weight, EPS, at.picture, joint[:, length:])
        return joint


class FeedForward(nn.Module):
    """The MLP of one stream: four times as wide inside, with a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Numbered as in the file.
        self.net = nn.Sequential(_Widening(width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] → the same."""
        y: Tensor = self.net(x)
        return y


class _Widening(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.proj(x), approximate="tanh")


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention over [batch, text and picture, heads, channels]; with its heads side by side."""
    if mask is not None:  # [batch, text]; every token of a picture counts
        mask = functional.pad(mask, (0, q.shape[1] - mask.shape[1]), value=True)[:, None, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
