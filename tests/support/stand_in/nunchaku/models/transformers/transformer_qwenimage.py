"""The transformer: the stock one with quantized layers, which calls its rotary table in the way of diffusers 0.36."""

from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_qwenimage import (
    QwenImageTransformer2DModel,
    QwenImageTransformerBlock,
    apply_rotary_emb_qwen,
)
from torch import Tensor, nn
from torch.nn import functional

from ..linear import AWQW4A16Linear, SVDQW4A4Linear
from . import utils  # noqa: F401 - as the engine, for what the import does

Pair = tuple[Tensor, Tensor]


def fused(linears: list[nn.Linear]) -> nn.Linear:
    return nn.Linear(linears[0].in_features, sum(linear.out_features for linear in linears))


class Processor:
    def __call__(self, attn: Any, image: Tensor, text: Tensor, _mask: Any, _attention_mask: Any, rotary: Pair) -> Pair:
        streams = [
            self._stream(attn, attn.add_qkv_proj(text), attn.norm_added_q, attn.norm_added_k, rotary[1]),
            self._stream(attn, attn.to_qkv(image), attn.norm_q, attn.norm_k, rotary[0]),
        ]
        query, key, value = (torch.cat(parts, dim=1).transpose(1, 2) for parts in zip(*streams, strict=True))
        joint = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        length = text.shape[1]
        return attn.to_out[0](joint[:, length:]), attn.to_add_out(joint[:, :length])

    def _stream(self, attn: Any, qkv: Tensor, norm_q: nn.Module, norm_k: nn.Module, rotary: Tensor) -> list[Tensor]:
        query, key, value = (part.unflatten(-1, (attn.heads, -1)) for part in qkv.chunk(3, dim=-1))
        query = apply_rotary_emb_qwen(norm_q(query), rotary, use_real=False)
        return [query, apply_rotary_emb_qwen(norm_k(key), rotary, use_real=False), value]


class NunchakuQwenAttention(nn.Module):
    def __init__(self, other: Any, **kwargs: Any) -> None:
        super().__init__()
        self.processor = Processor()
        self.heads = other.heads
        self.norm_q, self.norm_k = other.norm_q, other.norm_k
        self.norm_added_q, self.norm_added_k = other.norm_added_q, other.norm_added_k
        with torch.device("meta"):
            image = fused([other.to_q, other.to_k, other.to_v])
            text = fused([other.add_q_proj, other.add_k_proj, other.add_v_proj])
        self.to_qkv = SVDQW4A4Linear.from_linear(image, **kwargs)
        self.add_qkv_proj = SVDQW4A4Linear.from_linear(text, **kwargs)
        self.to_out = other.to_out
        self.to_out[0] = SVDQW4A4Linear.from_linear(self.to_out[0], **kwargs)
        self.to_add_out = SVDQW4A4Linear.from_linear(other.to_add_out, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        return self.processor(
            self, hidden_states, encoder_hidden_states, encoder_hidden_states_mask, attention_mask, image_rotary_emb
        )


class FeedForward(nn.Module):
    def __init__(self, other: Any, **kwargs: Any) -> None:
        super().__init__()
        self.net = other.net
        self.net[0].proj = SVDQW4A4Linear.from_linear(self.net[0].proj, **kwargs)
        self.net[2] = SVDQW4A4Linear.from_linear(self.net[2], **kwargs)
        self.net[2].act_unsigned = True

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.net[0].proj(x), approximate="tanh")
        output: Tensor = self.net[2](hidden)
        return output


class Block(QwenImageTransformerBlock):
    def __init__(self, other: QwenImageTransformerBlock, **kwargs: Any) -> None:
        nn.Module.__init__(self)
        self.img_mod, self.txt_mod = other.img_mod, other.txt_mod
        self.img_mod[1] = AWQW4A16Linear.from_linear(other.img_mod[1], **kwargs)
        self.txt_mod[1] = AWQW4A16Linear.from_linear(other.txt_mod[1], **kwargs)
        self.img_norm1, self.img_norm2 = other.img_norm1, other.img_norm2
        self.txt_norm1, self.txt_norm2 = other.txt_norm1, other.txt_norm2
        self.attn = NunchakuQwenAttention(other.attn, **kwargs)
        self.img_mlp, self.txt_mlp = FeedForward(other.img_mlp, **kwargs), FeedForward(other.txt_mlp, **kwargs)

    def forward(self, image: Tensor, text: Tensor, conditioning: Tensor, rotary: Pair) -> Pair:
        image_mods, text_mods = (
            self._modulations(self.img_mod, conditioning),
            self._modulations(self.txt_mod, conditioning),
        )
        image_in = self.img_norm1(image) * image_mods[1] + image_mods[0]
        text_in = self.txt_norm1(text) * text_mods[1] + text_mods[0]
        image_out, text_out = self.attn(hidden_states=image_in, encoder_hidden_states=text_in, image_rotary_emb=rotary)
        image, text = image + image_mods[2] * image_out, text + text_mods[2] * text_out
        image = image + image_mods[5] * self.img_mlp(self.img_norm2(image) * image_mods[4] + image_mods[3])
        text = text + text_mods[5] * self.txt_mlp(self.txt_norm2(text) * text_mods[4] + text_mods[3])
        return image, text

    def _modulations(self, layer: nn.Module, conditioning: Tensor) -> list[Tensor]:
        outputs = layer(conditioning)  # channel by channel, and the 1 of the scales is in it
        return [part[:, None] for part in outputs.view(len(outputs), -1, 6).unbind(-1)]


class NunchakuQwenImageTransformer2DModel(QwenImageTransformer2DModel):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.offload = kwargs.pop("offload", False)
        self._is_initialized = False
        super().__init__(*args, **kwargs)

    def _patch_model(self, **kwargs: Any) -> Any:
        for index, block in enumerate(self.transformer_blocks):
            self.transformer_blocks[index] = Block(block, **kwargs)
        self._is_initialized = True
        return self

    def set_offload(self, offload: bool, **kwargs: Any) -> None:
        self.offload, self.offload_arguments = offload, kwargs

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,  # noqa: ARG002 - as the engine, which ignores it
        timestep: Any = None,
        img_shapes: Any = None,
        txt_seq_lens: list[int] | None = None,
        guidance: Tensor | None = None,  # noqa: ARG002
        attention_kwargs: dict[str, Any] | None = None,  # noqa: ARG002
        controlnet_block_samples: Any = None,  # noqa: ARG002
        return_dict: bool = True,
    ) -> Any:
        image = self.img_in(hidden_states)
        text = self.txt_in(self.txt_norm(encoder_hidden_states))
        conditioning = self.time_text_embed(timestep.to(image.dtype), image)
        rotary = self.pos_embed(img_shapes, txt_seq_lens, device=image.device)
        for block in self.transformer_blocks:
            image, text = block(image, text, conditioning, rotary)
        output = self.proj_out(self.norm_out(image, conditioning))
        torch.cuda.empty_cache()
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_initialized and any(isinstance(arg, torch.dtype) for arg in (*args, *kwargs.values())):
            raise ValueError("Casting a quantized model to a new `dtype` is unsupported.")
        return super(type(self), self).to(*args, **kwargs)
