"""The Qwen image VAE: pixels → latents → pixels, and the tokens that the transformer sees of latents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage, QwenImageCausalConv3d
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d

from qwen_edit.model.blank import WithoutMemory, assign_tensors
from qwen_edit.store.documents import file_name, read_object
from qwen_edit.store.fields import Table, flag, integer, largest, misfit, number, several, take

_HALVINGS = 3
PIXELS_PER_LATENT = 2**_HALVINGS
"""The VAE halves a picture three times."""

PIXELS_PER_TOKEN = 2 * PIXELS_PER_LATENT
"""A token of the transformer holds 2 × 2 latent pixels."""

_CHANNELS = 16
"""The `z_dim` of a configuration that states none, for which the library has the latents' means and deviations."""


def load_vae(folder: Path, tensors: Mapping[str, Tensor]) -> AutoencoderKLQwenImage:
    """Build the VAE around tensors that are on the device already.

    Args:
        folder: the base model's `vae/`, for its `config.json`.

    Raises:
        ModelUnavailable: the configuration cannot be used, or the tensors are not its own.
    """
    fields = read_fields(folder, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    with WithoutMemory():
        vae = AutoencoderKLQwenImage(**fields)
    for module in vae.modules():
        if type(module) is QwenImageCausalConv3d:
            module.__class__ = FrameConvolution
    assign_tensors(vae, tensors, "vae")
    for module in vae.modules():
        if isinstance(module, FrameConvolution):
            module.lay_out()
    return vae


def read_fields(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What `config.json` says of the network's shape and of its latents.

    Args:
        folder: the base model's `vae/`.
        shapes: of each tensor of its weight file; see `text_encoder.read_config`.

    Raises:
        ModelUnavailable: the file is missing or damaged, or a value cannot be that of this network.
    """
    name = file_name(folder / "config.json")
    width = integer(1, largest(shapes))
    table: Table = {
        "base_dim": width,
        "z_dim": width,
        "dim_mult": several(integer(1, 64), _HALVINGS + 1, _HALVINGS + 1),
        "num_res_blocks": integer(1, max(1, len(shapes))),
        "attn_scales": several(number(0, 1), 0, 8),
        "temperal_downsample": several(flag(), _HALVINGS, _HALVINGS),
        "input_channels": integer(3, 3),
        "latents_mean": several(number(-1e3, 1e3), 1, 1024),
        "latents_std": several(number(1e-3, 1e3), 1, 1024),
    }
    fields = take(name, read_object(folder / "config.json"), table)
    channels = fields.get("z_dim", _CHANNELS)
    for field in ("latents_mean", "latents_std"):
        if len(fields.get(field, [0] * _CHANNELS)) != channels:
            raise misfit(name, field, fields.get(field), f"a number for each of {channels} channels, the z_dim")
    return fields


class FrameConvolution(QwenImageCausalConv3d):  # type: ignore[misc]
    """The causal convolution of a video's VAE, which does a single frame in two dimensions.

    Before the first frame there are zeros, so of the kernel's steps in time only the last one meets anything: a third
    of the work. In three dimensions PyTorch computes bfloat16 without cuDNN where that is 9.8 to 9.14, by way of
    gigabytes of columns (pytorch/pytorch issue 166643).
    """

    def lay_out(self) -> None:
        """Put the kernel's last step in time into one piece, or each call would copy it. The numbers stay."""
        by_time = self.weight.data.permute(2, 0, 1, 3, 4).contiguous()
        self.weight.data = by_time.permute(1, 2, 0, 3, 4)

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Convolve frames, [batch, channels, frames, height, width], behind those in `cache_x` or behind zeros."""
        if x.shape[2] > 1 or cache_x is not None or self.stride[0] > 1:
            frames: Tensor = super().forward(x, cache_x)
            return frames
        width, _, height, *_ = self._padding
        return conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], (height, width)).unsqueeze(2)


def to_pixels(picture: Image.Image) -> Tensor:
    """What the VAE is given of an RGB picture: float32 [1, 3, 1, height, width] in −1 … 1.

    By a table of the 256 levels, to the bits of diffusers' `VaeImageProcessor`: one pass over the pixels, not several.
    """
    table = 2.0 * (np.arange(256, dtype=np.float32) / 255.0) - 1.0
    return torch.from_numpy(np.take(table, np.asarray(picture))).permute(2, 0, 1)[None, :, None]


def encode_pixels(vae: AutoencoderKLQwenImage, pixels: Tensor) -> Tensor:
    """The normalized latents of a picture, the mean of what the VAE encodes: [1, channels, 1, height / 8, width / 8].

    Args:
        pixels: [1, 3, 1, height, width] in −1 … 1.
    """
    latents: Tensor = vae.encode(pixels).latent_dist.mode()
    mean = _per_channel(vae, vae.config.latents_mean, latents)
    return (latents - mean) / _per_channel(vae, vae.config.latents_std, latents)


def packed(latents: Tensor) -> Tensor:
    """[batch, channels, 1, height, width] → [batch, height / 2 · width / 2, channels · 4]: a token holds 2 × 2."""
    batch, channels, _, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


def unpacked(latents: Tensor, size: tuple[int, int]) -> Tensor:
    """[batch, tokens, channels · 4] → [batch, channels, 1, height / 8, width / 8]; the inverse of `packed`.

    Args:
        size: width and height of the picture in pixels.
    """
    batch, _, channels = latents.shape
    rows, columns = grid(size)
    squares = latents.reshape(batch, rows, columns, channels // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, 1, rows * 2, columns * 2)


def grid(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tokens for a width and a height in pixels."""
    return size[1] // PIXELS_PER_TOKEN, size[0] // PIXELS_PER_TOKEN


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
