"""Prompts as the transformer sees them, by the parts that serve, thinned for training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwen_edit.model.prompt import DROPPED, PromptEncoder
from qwen_edit.model.text_encoder import load_text_encoder
from qwen_edit.store.shards import shards

SAMPLES = 6
"""How many tokens of the picture stand for all of them."""

MEGAPIXEL = 1369
"""Tokens of a square megapixel in a prompt, 37 × 37 of 28 pixels."""


@dataclass(frozen=True)
class Prompt:
    """Some rows of a prompt's embeddings: all of the words, a few of the picture's tokens.

    `embeddings` is [rows, width]. `positions` [rows] is where each row stands behind a picture of a megapixel.
    `counts` [rows] is how many tokens a row stands for.
    """

    embeddings: Tensor
    positions: Tensor
    counts: Tensor


def open_encoder(base: Path) -> PromptEncoder:
    """The text encoder with its tokenizer, in float32, from the folder of the base model."""
    folder = base / "text_encoder"
    stored = {name: tensor for path in shards(folder) for name, tensor in load_file(path).items()}
    tensors = {name: tensor.float() for name, tensor in stored.items() if not name.startswith("lm_head.")}
    tokenizer = Qwen2Tokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(base / "processor")
    return PromptEncoder(tokenizer, image_processor, load_text_encoder(folder, tensors))


@torch.inference_mode()
def embed(encoder: PromptEncoder, text: str, picture: Image.Image) -> Prompt:
    """The embeddings of a prompt beside a picture, which may be small: its tokens look alike, and are counted anew."""
    ids = encoder.inputs(text, picture).input_ids[0]
    shown = ids[DROPPED:] == encoder.text_encoder.config.image_token_id
    embeddings = encoder.states(text, picture)
    at = shown.nonzero()[:, 0]
    kept = at[torch.linspace(0, len(at) - 1, SAMPLES).long()]
    rows = torch.cat([torch.arange(at[0]), kept, torch.arange(at[-1] + 1, len(shown))])
    counts = torch.where(shown[rows], MEGAPIXEL / SAMPLES, 1.0)
    return Prompt(embeddings[0, rows].clone(), _positions(rows, int(at[0]), len(at)), counts)


def _positions(rows: Tensor, first: int, count: int) -> Tensor:
    """Stretch the picture's part from `count` tokens to a megapixel's."""
    within = (rows - first).clamp(0, count)
    return rows - within + within * MEGAPIXEL // count


def stack(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [batch, rows, width], positions [rows], log counts [batch, rows]: very low where a row is filled up.

    The positions are those of the longest, which are right for all: they begin alike.
    """
    longest = max(prompts, key=lambda prompt: len(prompt.counts))
    embeddings = torch.zeros(len(prompts), *longest.embeddings.shape)
    counts = torch.zeros(len(prompts), len(longest.counts))
    for i, prompt in enumerate(prompts):
        embeddings[i, : len(prompt.counts)] = prompt.embeddings
        counts[i, : len(prompt.counts)] = prompt.counts
    return embeddings, longest.positions, counts.log().clamp(min=-1e4)
