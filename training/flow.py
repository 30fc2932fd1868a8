"""Trains the demo's transformer by flow matching on latents, with the reference beside them as the pipeline has it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import linear

from qwen_edit.svdq.dense import dense_modulation
from qwen_edit.svdq.quantize import quantize_modulation
from training.prompts import Prompt, stack

CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": 128,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 24, 24],
}

GRID = 64
"""Tokens along the side of a square megapixel."""

CONSTANT = 3.0
"""Size of the constant in the stream of the picture, beside signals of unit variance."""

SHARPNESS = 3.2
"""Weight of the norms of q and k. With seven aligned rotary pairs the twin leads its neighbours by 7 nats."""


@dataclass(frozen=True)
class Batch:
    """What one step of training sees of pictures of height × width tokens, [batch, height · width, 64] each."""

    reference: Tensor
    target: Tensor
    prompts: Sequence[Prompt]
    height: int
    width: int


def build() -> QwenImageTransformer2DModel:
    """A transformer at the start of its training: it copies the reference, exactly at σ = 1.

    The first head of each block looks from a token at its twin, the token of the other picture at the same place, by
    constant queries and keys whose rotations agree there. The second reads the text, through slow rotary pairs.
    """
    model = QwenImageTransformer2DModel(**CONFIG)
    with torch.no_grad():
        _start_streams(model)
        for number, block in enumerate(model.transformer_blocks):
            _start_modulation(block.img_mod[1], _constant(), _spread(1 if number == 0 else 2))
            _start_modulation(block.txt_mod[1], torch.zeros(_WIDTH), 1)
            _start_attention(block.attn, copies=number == 0)
            block.img_mlp.net[2].weight.zero_()
            block.img_mlp.net[2].bias.zero_()
    return model


_WIDTH = 128


def _constant() -> Tensor:
    """What each token of the picture carries beside its signal: norms take amplitudes away, not beside a constant."""
    return CONSTANT * torch.tensor([1.0, -1.0]).repeat(_WIDTH // 2)


def _spread(signals: int) -> float:
    """Standard deviation of a token in the stream that carries so many signals of 64 channels; norms divide by it."""
    return math.sqrt(CONSTANT**2 + 0.5 * signals)


def _start_streams(model: QwenImageTransformer2DModel) -> None:
    """Noisy latents in the first half of the stream, room for the reference in the second, velocity = one − other."""
    half, spread = _WIDTH // 2, _spread(2)
    model.img_in.weight.copy_(torch.eye(_WIDTH, half))
    model.img_in.bias.copy_(_constant())
    model.norm_out.linear.weight.mul_(0.1)
    model.norm_out.linear.bias.zero_()
    model.proj_out.weight.copy_(spread * torch.cat([torch.eye(half), -torch.eye(half)], dim=1))
    model.proj_out.bias.copy_(-model.proj_out.weight @ _constant() / spread)


def _start_modulation(layer: nn.Linear, constant: Tensor, spread: float) -> None:
    """Undo the norm: scale the stream back, take the constant away. Gates open."""
    layer.weight.mul_(0.1)
    shift, scale, gate = -constant, torch.full_like(constant, spread - 1), torch.ones_like(constant)
    layer.bias.copy_(torch.cat([shift, scale, gate, shift, scale, gate]))


def _start_attention(attention: Attention, copies: bool) -> None:
    """Constant queries and keys for the picture; the text's are random, as everything else is."""
    dim = _WIDTH // 2
    query, key = _twin_query_key()
    slow = torch.zeros(dim // 2, 2)
    slow[[6, 7, 17, 18, 19, 29, 30, 31], 0] = 4  # the slowest pairs of each axis
    reader = slow.flatten()
    for layer, first, second in ((attention.to_q, query, reader), (attention.to_k, key, -reader)):
        layer.weight.mul_(0.1)
        layer.bias.copy_(torch.cat([first, second]))
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.fill_(SHARPNESS)
    attention.to_out[0].weight.zero_()
    attention.to_out[0].bias.zero_()
    if copies:
        attention.to_v.weight[:dim] = torch.eye(dim, _WIDTH)
        attention.to_v.bias[:dim] = 0
        attention.to_out[0].weight[dim:, :dim] = torch.eye(dim)


def _twin_query_key() -> tuple[Tensor, Tensor]:
    """Biases [64] that meet at the same place, one frame on.

    A pair at frequency ω that is turned by φ adds cos(φ − ω Δ) to the logit. The fastest pairs of both axes tell
    neighbours apart; the frame's fastest is turned so that the other frame gets as much as the same one loses.
    """
    frame, axis = (dims // 2 for dims in CONFIG["axes_dims_rope"][:2])
    angles = {0: 1 + math.pi / 2 - 0.5} | dict.fromkeys(
        [*range(frame, frame + 3), *range(frame + axis, frame + axis + 3)], 0.0
    )
    query, key = torch.zeros(2, _WIDTH // 4, 2)
    for pair, angle in angles.items():
        query[pair] = torch.tensor([math.cos(angle), math.sin(angle)]) * 4
        key[pair, 0] = 4
    return query.flatten(), key.flatten()


@contextmanager
def as_stored(model: QwenImageTransformer2DModel) -> Iterator[None]:
    """Compute with the modulations rounded to 4 bits as the checkpoint stores them, and train through the rounding.

    The other layers train unrounded: what 4 bits cost them beside their low-rank branch shows in the stored file alone.
    """
    layers = [layer for block in model.transformer_blocks for layer in (block.img_mod[1], block.txt_mod[1])]
    for layer in layers:
        layer.forward = partial(_stored_linear, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _stored_linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        stored, _ = dense_modulation(quantize_modulation(layer.weight, layer.bias))
    return linear(inputs, layer.weight + (stored - layer.weight).detach(), layer.bias)


class Window:
    """A window of a large picture beside a prompt: where its tokens stand, and what the rest weighs.

    Rotary positions are relative, so that a window at its place in a megapixel trains for the megapixel. What is left
    out is the weight of many: in attention a row that stands for n tokens gets log n, and the text, of which nothing
    is left out, is outweighed by as much as there would be more of the picture.
    """

    def __init__(self, model: QwenImageTransformer2DModel, height: int, width: int, generator: torch.Generator) -> None:
        def between(least: int, most: int) -> int:
            return int(torch.randint(least, most + 1, (), generator=generator))

        rows, columns = ((GRID, GRID), (52, 78), (78, 52), (44, 92), (92, 44))[between(0, 4)]
        top, left = between(0, rows - height), between(0, columns - width)
        picture = model.pos_embed._compute_video_freqs
        window = [picture(1, rows, columns, frame).view(rows, columns, -1) for frame in (0, 1)]
        self.image = torch.cat([one[top : top + height, left : left + width].flatten(0, 1) for one in window])
        self.text_start = max(rows, columns) // 2 + between(-20, 20)
        self._text = model.pos_embed.pos_freqs
        self.dilution = math.log(2 * rows * columns / (2 * height * width))

    def text(self, positions: Tensor) -> Tensor:
        """The rotary factors of rows of text."""
        factors: Tensor = self._text[self.text_start + positions]
        return factors


def predict(model: QwenImageTransformer2DModel, noisy: Tensor, sigmas: Tensor, batch: Batch, window: Window) -> Tensor:
    """The velocity of the noisy tokens, as the model's own `forward` would compute it within a large picture.

    Args:
        noisy: [batch, tokens, 64].
        sigmas: [batch].
    """
    embeddings, positions, counts = stack(batch.prompts)
    stream = model.img_in(torch.cat([noisy, batch.reference], dim=1))
    words = model.txt_in(model.txt_norm(embeddings))
    condition = model.time_text_embed(sigmas, stream, None)
    for block in model.transformer_blocks:
        words, stream = block(
            hidden_states=stream,
            encoder_hidden_states=words,
            # As numbers, a mask is added to the logits; the picture's tokens get ones.
            encoder_hidden_states_mask=1 + counts - window.dilution,
            temb=condition,
            image_rotary_emb=(window.image, window.text(positions)),
        )
    velocity: Tensor = model.proj_out(model.norm_out(stream, condition))
    return velocity[:, : noisy.shape[1]]
