"""The Qwen image VAE, and the way from latents back to pixels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from PIL import Image
from torch import Tensor

from qwen_edit.models.skeleton import WithoutMemory, assign_tensors


def load_vae(folder: Path, tensors: Mapping[str, Tensor]) -> AutoencoderKLQwenImage:
    """Build the VAE around tensors that are on the device already.

    Args:
        folder: the base model's `vae/`, for its `config.json`.

    Raises:
        ModelUnavailable: the tensors are not those of the configuration.
    """
    with WithoutMemory():
        vae = AutoencoderKLQwenImage.from_config(AutoencoderKLQwenImage.load_config(folder))
    return assign_tensors(vae, tensors, "vae")


def decode_latents(vae: AutoencoderKLQwenImage, latents: Tensor) -> list[Image.Image]:
    """Turn latents into pictures, one at a time to keep the peak of memory at one picture.

    Args:
        latents: normalized, [batch, channels, 1, height / 8, width / 8].
    """
    mean = _per_channel(vae, vae.config.latents_mean, latents)
    std = _per_channel(vae, vae.config.latents_std, latents)
    return [_decode_one(vae, one[None] * std + mean) for one in latents]


def _per_channel(vae: AutoencoderKLQwenImage, values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, vae.config.z_dim, 1, 1, 1)


def _decode_one(vae: AutoencoderKLQwenImage, latents: Tensor) -> Image.Image:
    pixels = vae.decode(latents, return_dict=False)[0][0, :, 0]  # [3, height, width] in −1 … 1
    # To uint8 on the device: a quarter of the bytes to copy, and none of the float passes on the CPU.
    levels = pixels.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy()))
