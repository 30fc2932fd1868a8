"""A block of ours beside the stock one, with the same random weights."""

from typing import Any, Self

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch import Tensor, nn

from qwen_edit.model.transformer.block import Block
from qwen_edit.model.transformer.fp8_linear import Fp8Linear, use_fp8
from qwen_edit.model.transformer.rotary import Positions
from qwen_edit.svdq.fp8 import FP8_MODULES, quantize_rows
from qwen_edit.svdq.modules import stock_modules
from tests.support.dense import stacked

PICTURE, DRAWN, TEXT = 33, 20, 7
"""Tokens: of the picture, of these the ones that are drawn, of the text."""

PREFIX = "transformer_blocks.0."


class Blocks:
    """Both blocks, in float32 at first."""

    def __init__(self, heads: int, channels: int, *, zero_cond_t: bool = False, fp8: bool = False) -> None:
        torch.manual_seed(heads + channels)
        self._width, self._channels, self._zero_cond_t = heads * channels, channels, zero_cond_t
        self.stock = QwenImageTransformerBlock(self._width, heads, channels, zero_cond_t=zero_cond_t).eval()
        self.ours = Block(heads, channels, zero_cond_t=zero_cond_t).eval()
        attention = self.stock.attn
        for norm in (attention.norm_q, attention.norm_k, attention.norm_added_q, attention.norm_added_k):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        self.ours.load_state_dict(self._weights())
        if fp8:
            self._use_fp8()
        self.stock.requires_grad_(requires_grad=False)
        self.ours.requires_grad_(requires_grad=False)

    def to(self, dtype: torch.dtype) -> Self:
        """Round the weights to a dtype, or widen what was rounded."""
        self.stock.to(dtype)
        self.ours.to(dtype)
        return self

    def _weights(self) -> dict[str, Tensor]:
        """The stock block's under our names."""
        named = {PREFIX + name: tensor for name, tensor in self.stock.state_dict().items()}
        return {name.removeprefix(PREFIX): tensor for name, tensor in stacked(named).items()}

    def _use_fp8(self) -> None:
        weights = self._weights()
        for module in FP8_MODULES:
            name = f"{module}.weight"
            weights[name], weights[f"{name}_scale"] = quantize_rows(weights[name])
            for layer in stock_modules(module):
                self.stock.set_submodule(layer, _in_fp8(self.stock.get_submodule(layer)))
        model = nn.Module()
        model.transformer_blocks = nn.ModuleList([self.ours])
        use_fp8(model)
        self.ours.load_state_dict(weights, assign=True)

    def inputs(self, batch: int = 1) -> dict[str, Any]:
        """Random ones of both streams, with positions and a conditioning."""
        generator = torch.Generator().manual_seed(batch)
        angles = torch.rand(PICTURE + TEXT, self._channels // 2, generator=generator) * 6
        rows = 2 * batch if self._zero_cond_t else batch
        return {
            "hidden_states": torch.randn(batch, PICTURE, self._width, generator=generator),
            "encoder_hidden_states": torch.randn(batch, TEXT, self._width, generator=generator),
            "encoder_hidden_states_mask": None,
            "temb": torch.randn(rows, self._width, generator=generator),
            "image_rotary_emb": torch.polar(torch.ones_like(angles), angles),
        }

    @torch.inference_mode()
    def outputs(self, given: dict[str, Any]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Of our block, then of the stock one: text and picture each."""
        picture, text = given["image_rotary_emb"].split([PICTURE, TEXT])
        at = Positions(torch.view_as_real(picture), torch.view_as_real(text), DRAWN)
        index = torch.tensor([[0] * DRAWN + [1] * (PICTURE - DRAWN)]) if self._zero_cond_t else None
        ours = self.ours(**{**given, "image_rotary_emb": at})
        return ours, self.stock(**{**given, "image_rotary_emb": (picture, text)}, modulate_index=index)


def _in_fp8(plain: nn.Module) -> Fp8Linear:
    assert isinstance(plain, nn.Linear)
    layer = Fp8Linear(plain.in_features, plain.out_features)
    weight, scale = quantize_rows(plain.weight.detach())
    layer.load_state_dict({"weight": weight, "weight_scale": scale, "bias": plain.bias.detach()}, assign=True)
    return layer
