"""The attention of the nunchaku backend with the engine's fused product in the place of what the engine does by itself.

The engine's own attention writes queries, keys and values, then reads and writes queries and keys again for the norm,
for the rotation, and for the concatenation of text and picture. Its fused operation does norm and rotation on what the
product has just computed, and writes it to where the joint attention reads it.

It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for a GPU".
"""

from typing import Any, Protocol

from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from qwen_edit.errors import ModelUnavailable
from qwen_edit.model.transformer.packed_rotary import PackedRotaryTable
from qwen_edit.svdq.checkpoint import CheckpointInfo

HEAD = 128
"""Channels of a head, which are fixed in the engine's kernel, as the 10⁻⁶ in the root of its norm is."""


class FusedProduct(Protocol):
    """The engine's operation: queries, keys and values of one stream, with norm and rotation of the first two.

    What the kernel demands and does not get ends the process, without an error of Python.
    """

    def __call__(
        self,
        x: Tensor,
        proj: nn.Module,
        norm_q: nn.Module,
        norm_k: nn.Module,
        rotary_emb: Tensor,
        *,
        output: Tensor,
    ) -> Tensor:
        """Compute [batch, tokens, 3 · width], the thirds one after the other and in each head after head.

        Args:
            x: bfloat16 [batch, tokens, width], contiguous. The rows of the whole batch are padded to a multiple of 256.
            proj: the quantized layer of all three.
            norm_q: over a head's channels, an RMSNorm of torch or diffusers, no other class, its weight in the dtype
                of `x`.
            norm_k: likewise.
            rotary_emb: float32 [1, those padded rows, 128], as `packed` makes it.
            output: where the result goes, [batch · tokens, 3 · width], contiguous; no row more is written.
        """


def fuse_attention(transformer: QwenImageTransformer2DModel, product: FusedProduct, info: CheckpointInfo) -> None:
    """Put the fused attention and its rotary table into the engine's transformer.

    The blocks that the engine copies for offload `blocks` take it along, where that comes afterwards.

    Args:
        product: from `fused_product`.
        info: the checkpoint's header.

    Raises:
        ModelUnavailable: the heads of the model are not those of the kernel, or the engine's attention takes no
            processor.
    """
    if (head := info.config["attention_head_dim"]) != HEAD:
        raise ModelUnavailable(
            f"{info.file}: metadata 'config' has attention_head_dim {head}, expected {HEAD} with "
            "QWEN_EDIT_FUSED_QKV=1; leave that out"
        )
    for block in transformer.transformer_blocks:
        if not hasattr(block.attn, "processor"):
            raise ModelUnavailable(
                "the engine's attention has no processor, which QWEN_EDIT_FUSED_QKV=1 replaces; "
                "leave that out or install release 1.2.1"
            )
        block.attn.processor = FusedJointAttention(product)
    transformer.pos_embed = PackedRotaryTable(info.config["axes_dims_rope"])


class FusedJointAttention:
    """Text and picture attend to each other, text first, as in the engine's own processor."""

    def __init__(self, product: FusedProduct) -> None:
        self._product = product

    def __call__(
        self,
        attn: Any,  # noqa: ANN401 - the engine's attention
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,  # noqa: ARG002 - the engine ignores it as well
        attention_mask: None = None,  # noqa: ARG002 - the engine's signature
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            hidden_states: of the picture, [batch, tokens, width].
            encoder_hidden_states: of the text, likewise.
            image_rotary_emb: of picture and text, as `PackedRotaryTable` makes them.

        Returns:
            What is added to the picture, and to the text.
        """
        if image_rotary_emb is None:
            raise ValueError("the positions of picture and text are missing")
        at_picture, at_text = image_rotary_emb
        batch, length, _ = encoder_hidden_states.shape
        joint = hidden_states.new_empty(batch, length + hidden_states.shape[1], attn.to_qkv.out_features)
        # One member at a time: only so a stream's rows lie together in the joint tensor, and one table does for all.
        for member, rows in enumerate(joint):
            text, picture = encoder_hidden_states[member : member + 1], hidden_states[member : member + 1]
            added = (attn.add_qkv_proj, attn.norm_added_q, attn.norm_added_k)
            self._product(text, *added, at_text, output=rows[:length])
            self._product(picture, attn.to_qkv, attn.norm_q, attn.norm_k, at_picture, output=rows[length:])
        # [batch, heads, tokens, channels] each, without a copy
        query, key, value = joint.view(batch, -1, 3, attn.heads, HEAD).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return attn.to_out[0](attended[:, length:]), attn.to_add_out(attended[:, :length])
