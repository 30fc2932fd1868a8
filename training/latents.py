"""Latents of training pictures and of their exact edits, packed into the transformer's tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from torch import Tensor

from training.autoencoder import decode, encode, single_frame
from training.edits import EDITS
from training.photos import Sampler

SIDE = 12
"""Tokens along the side of a training picture: 192 pixels."""

_TOKEN = 16
_MARGIN = 1  # tokens that are encoded around a picture and cut away: at a border the convolutions see zeros


@dataclass(frozen=True)
class Bank:
    """`edited` holds, by the name of the edit, tokens [pictures, SIDE, SIDE, 64]; those of "keep" are the references.

    `importance` [64] is what an error of a channel does to the pixels, 1 in the mean.
    """

    edited: Mapping[str, Tensor]
    importance: Tensor


@torch.no_grad()
def encode_bank(vae: AutoencoderKLQwenImage, sampler: Sampler, count: int) -> Bank:
    """Draw pictures, edit them exactly, encode all."""
    side = (SIDE + 2 * _MARGIN) * _TOKEN
    edited: dict[str, list[Tensor]] = {name: [] for name in EDITS}
    with single_frame(vae):
        for _ in range(0, count, 4):
            pixels = sampler.batch(4, side, side)
            for name, edit in EDITS.items():
                tokens = pack(normalize(vae, encode(vae, edit(pixels))))
                edited[name].append(tokens[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN])
        importance = _importance(vae, encode(vae, pixels))
    return Bank({name: torch.cat(parts) for name, parts in edited.items()}, importance)


def normalize(vae: AutoencoderKLQwenImage, latents: Tensor) -> Tensor:
    """As the pipeline does, with the configuration's mean and standard deviation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (vae.config.latents_mean, vae.config.latents_std))
    return (latents - mean) / std


def pack(latents: Tensor) -> Tensor:
    """[batch, 16, 2 h, 2 w] → [batch, h, w, 64], channels outermost, as the pipeline packs."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2, width // 2, channels * 4)


def _importance(vae: AutoencoderKLQwenImage, latents: Tensor) -> Tensor:
    """From small steps along each channel; a tenth of the mean is added, so that no channel is forgotten."""
    picture = decode(vae, latents)
    effects = []
    for channel, std in enumerate(vae.config.latents_std):
        moved = latents.clone()
        moved[:, channel] += 0.2 * std * torch.randn_like(moved[:, channel])
        effects.append((decode(vae, moved) - picture).square().mean())
    effect = torch.stack(effects)
    effect = effect + 0.1 * effect.mean()
    return (effect / effect.mean()).repeat_interleave(4)
