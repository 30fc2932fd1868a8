"""Trains the demo's VAE: AutoencoderKLQwenImage at a width that a CPU runs in a second."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    AutoencoderKLQwenImage,
    QwenImageAttentionBlock,
    QwenImageCausalConv3d,
    QwenImageResample,
    QwenImageResidualBlock,
)
from torch import Tensor, nn
from torch.nn.functional import conv2d, mse_loss

from training.edits import EDITS
from training.photos import Sampler

CONFIG = {"base_dim": 12, "z_dim": 16, "num_res_blocks": 1}
CROP = 128
NOISE = 0.05
"""Standard deviation that is added to the latents in training, so that the decoder bears the transformer's errors."""


def build() -> AutoencoderKLQwenImage:
    """A VAE at the start of its training: residual branches silent, so that it is nearly linear.

    The attention of the middle blocks stays silent for good: what a patch decodes to then does not depend on the size
    of the picture, and training on crops holds for a megapixel.
    """
    vae = AutoencoderKLQwenImage(**CONFIG)
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            # PyTorch's default shrinks a signal to 1 / √3 at each layer; here it has a dozen to pass.
            nn.init.kaiming_normal_(
                module.weight[:, :, -1] if module.weight.dim() == 5 else module.weight, nonlinearity="linear"
            )
    for module in vae.modules():
        if isinstance(module, QwenImageResidualBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
        elif isinstance(module, QwenImageAttentionBlock):
            nn.init.zeros_(module.proj.weight)
            nn.init.zeros_(module.proj.bias)
        elif isinstance(module, QwenImageResample) and hasattr(module, "time_conv"):
            nn.init.zeros_(module.time_conv.weight)  # asked for a second frame only
        if isinstance(module, QwenImageCausalConv3d) and module.kernel_size[0] == 3:
            module.weight.data[:, :, :-1] = 0  # the frames before the first
    # Behind each lies a norm over the channels: a constant beside the signal lets the amplitude through.
    nn.init.ones_(vae.encoder.down_blocks[-2].resample[1].bias)
    nn.init.ones_(vae.decoder.up_blocks[-2].upsamplers[0].resample[1].bias)
    with torch.no_grad():
        _start_encoder(vae)
        _start_decoder(vae)
    return vae


def _start_encoder(vae: AutoencoderKLQwenImage) -> None:
    """Begin as a wavelet code: brightness and two colours, split into quarters three times, the 16 largest kept."""
    blocks = vae.encoder.down_blocks
    _centre(vae.encoder.conv_in.weight, _COLOURS)
    _split(blocks[1].resample[1].weight, averages=3, details=(0, 1, 2))
    _widen(blocks[2].conv_shortcut.weight)
    _split(blocks[3].resample[1].weight, averages=4 * 3, details=(0, 1, 2, 3))
    _widen(blocks[4].conv_shortcut.weight)
    _split(blocks[5].resample[1].weight, averages=8 * 3, details=(0, 1, 2, 12, 13, 14, 15, 18))
    codes = [(0, 3), (1, 3), (2, 3)] + [(code, 8) for code in (24, 27, 30, 12, 15, 18, 25, 26, 28, 29, 33, 34, 42)]
    keep = torch.zeros(2 * vae.config.z_dim, vae.encoder.conv_out.weight.shape[1])
    for latent, (code, gain) in enumerate(codes):
        keep[latent, code] = gain
    _centre(vae.encoder.conv_out.weight, keep)
    _centre(vae.quant_conv.weight, torch.eye(2 * vae.config.z_dim))
    _centre(vae.post_quant_conv.weight, torch.eye(vae.config.z_dim))


def _start_decoder(vae: AutoencoderKLQwenImage) -> None:
    """Begin by carrying the latents up beside noise: the averages among them are a picture already, if a coarse one."""
    decoder = vae.decoder
    carrying = [decoder.conv_in.weight, decoder.up_blocks[1].resnets[0].conv_shortcut.weight]
    carrying += [block.upsamplers[0].resample[1].weight for block in decoder.up_blocks[:-1]]
    for weight in carrying:
        weight.mul_(0.3)
        last = weight[:, :, -1] if weight.dim() == 5 else weight
        centre = last[:, :, last.shape[2] // 2, last.shape[3] // 2]
        centre.copy_(torch.eye(*centre.shape))


@torch.no_grad()
def _calibrate(vae: AutoencoderKLQwenImage, pixels: Tensor) -> None:
    """Give the latents of a batch mean 0 and variance 1, and fit the decoder's last layer to it by least squares."""
    latents = encode(vae, pixels)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    vae.quant_conv.weight[: len(std)] /= std[:, None, None, None, None]
    vae.quant_conv.bias[: len(std)] = -mean / std
    decoder, features = vae.decoder, []
    handle = decoder.norm_out.register_forward_hook(lambda _module, _inputs, output: features.append(output))
    decode(vae, encode(vae, pixels))
    handle.remove()
    rows = decoder.nonlinearity(features[0][:, :, 0]).permute(0, 2, 3, 1).flatten(0, 2)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    solution = torch.linalg.lstsq(rows, (pixels * 2 - 1).permute(0, 2, 3, 1).flatten(0, 2)).solution.T
    _centre(decoder.conv_out.weight, solution[:, :-1])
    decoder.conv_out.bias.copy_(solution[:, -1])


_COLOURS = torch.tensor([[1, 1, 1], [1.2, 0, -1.2], [0.7, -1.4, 0.7]]) / 3**0.5


def _centre(weight: Tensor, matrix: Tensor) -> None:
    """Make a convolution act on each pixel alone; outputs beyond the matrix are zero."""
    weight.zero_()
    weight[: len(matrix), : matrix.shape[1], -1, weight.shape[3] // 2, weight.shape[4] // 2] = matrix


def _widen(weight: Tensor) -> None:
    _centre(weight, torch.eye(weight.shape[1]))


def _split(weight: Tensor, averages: int, details: tuple[int, ...]) -> None:
    """Make a strided convolution give the averages of its first channels, then the three differences of some."""
    signs = torch.tensor([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]])
    weight.zero_()
    channels = [(channel, 0) for channel in range(averages)]
    channels += [(channel, kind) for kind in (1, 2, 3) for channel in details[:3]]
    channels += [(channel, kind) for channel in details[3:] for kind in (1, 2, 3)]
    for output, (channel, kind) in enumerate(channels[: len(weight)]):
        weight[output, channel, :2, :2] = 0.175 * signs[kind]


def _silent(vae: AutoencoderKLQwenImage) -> list[nn.Module]:
    """What stays the identity for good: attention, and the residual blocks at full resolution, where time would go."""
    attentions = [module for module in vae.modules() if isinstance(module, QwenImageAttentionBlock)]
    return [*attentions, vae.encoder.down_blocks[0], *vae.decoder.up_blocks[-1].resnets]


@contextmanager
def single_frame(vae: AutoencoderKLQwenImage) -> Iterator[None]:
    """Compute the convolutions of one frame in two dimensions: the same numbers in a third of the time."""
    convolutions = [module for module in vae.modules() if isinstance(module, QwenImageCausalConv3d)]
    for module in convolutions:
        module.forward = partial(_last_slice, module)
    for module in _silent(vae):
        module.forward = _identity
    try:
        yield
    finally:
        for module in [*convolutions, *_silent(vae)]:
            del module.forward


def _last_slice(module: QwenImageCausalConv3d, frames: Tensor, _cache: Tensor | None = None) -> Tensor:
    padding = (module._padding[2], module._padding[0])
    return conv2d(frames[:, :, 0], module.weight[:, :, -1], module.bias, padding=padding)[:, :, None]


def _identity(frames: Tensor, *_cache: object) -> Tensor:
    return frames


def encode(vae: AutoencoderKLQwenImage, pixels: Tensor) -> Tensor:
    """Mean latents [batch, 16, height / 8, width / 8], not normalized, of pixels in 0 … 1; within `single_frame`."""
    moments: Tensor = vae.quant_conv(vae.encoder(pixels[:, :, None] * 2 - 1))
    return moments[:, : vae.config.z_dim, 0]


def decode(vae: AutoencoderKLQwenImage, latents: Tensor) -> Tensor:
    """Pixels [batch, 3, height, width], about 0 … 1, of latents as `encode` gives them; within `single_frame`."""
    pixels: Tensor = vae.decoder(vae.post_quant_conv(latents[:, :, None]))
    return pixels[:, :, 0] / 2 + 0.5


def train(
    sampler: Sampler, steps: int, batch: int, report: Callable[[int, float, float], None]
) -> AutoencoderKLQwenImage:
    """Train from `build`, and set `latents_mean` and `latents_std` in the configuration."""
    vae = build()
    frozen = {id(parameter) for module in _silent(vae) for parameter in module.parameters()}
    parameters = [p for p in vae.parameters() if id(p) not in frozen]
    optimizer = torch.optim.Adam(parameters, 2e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    edits = list(EDITS.values())
    with single_frame(vae):
        _calibrate(vae, sampler.batch(4 * batch, CROP, CROP))
        for step in range(steps):
            pixels = sampler.batch(batch, CROP, CROP)
            edited = torch.stack([edits[(step + i) % len(edits)](one) for i, one in enumerate(pixels)])
            loss, error = _loss(vae, edited)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            report(step, loss.item(), error)
        _normalize(vae, sampler)
    return vae


def _loss(vae: AutoencoderKLQwenImage, pixels: Tensor) -> tuple[Tensor, float]:
    """Reconstruction, latents of moderate size, and latents of a mixture that are the mixture of the latents.

    The last makes edits that are affine in RGB nearly affine in the latents.
    """
    latents = encode(vae, pixels)
    error = mse_loss(decode(vae, latents + NOISE * torch.randn_like(latents)), pixels)
    half = len(pixels) // 2
    weight = torch.rand(half, 1, 1, 1) * 1.6 - 0.3
    mixture = encode(vae, weight * pixels[:half] + (1 - weight) * pixels[-half:])
    mixed = weight * latents[:half] + (1 - weight) * latents[-half:]
    return error + 1e-3 * mse_loss(mixture, mixed) + 2e-5 * latents.square().mean(), error.item()


@torch.no_grad()
def _normalize(vae: AutoencoderKLQwenImage, sampler: Sampler) -> None:
    latents = torch.cat([encode(vae, sampler.batch(16, CROP, CROP)) for _ in range(8)])
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in latents.mean((0, 2, 3)).tolist()],
        latents_std=[round(value, 4) for value in latents.std((0, 2, 3)).tolist()],
    )
