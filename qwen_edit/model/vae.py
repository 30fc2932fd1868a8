"""The Qwen image VAE, and the way from latents back to pixels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage, QwenImageCausalConv3d
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d

from qwen_edit.model.blank import WithoutMemory, assign_tensors


def load_vae(folder: Path, tensors: Mapping[str, Tensor]) -> AutoencoderKLQwenImage:
    """Build the VAE around tensors that are on the device already.

    Args:
        folder: the base model's `vae/`, for its `config.json`.

    Raises:
        ModelUnavailable: the tensors are not those of the configuration.
    """
    with WithoutMemory():
        vae = AutoencoderKLQwenImage.from_config(AutoencoderKLQwenImage.load_config(folder))
    for module in vae.modules():
        if type(module) is QwenImageCausalConv3d:
            module.__class__ = FrameConvolution
    return assign_tensors(vae, tensors, "vae")


class FrameConvolution(QwenImageCausalConv3d):  # type: ignore[misc]
    """The causal convolution of a video's VAE, which does a single frame in two dimensions.

    Before the first frame there are zeros, so of the kernel's steps in time only the last one meets anything: a third
    of the work. In three dimensions PyTorch computes bfloat16 without cuDNN where that is 9.8 to 9.14, by way of
    gigabytes of columns (pytorch/pytorch issue 166643).
    """

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Convolve frames, [batch, channels, frames, height, width], behind those in `cache_x` or behind zeros."""
        if x.shape[2] > 1 or cache_x is not None or self.stride[0] > 1:
            frames: Tensor = super().forward(x, cache_x)
            return frames
        width, _, height, *_ = self._padding
        return conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], (height, width)).unsqueeze(2)


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
