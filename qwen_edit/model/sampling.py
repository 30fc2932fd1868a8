"""One edit on the device, from top to bottom: conditions, reference, noise, steps, pictures.

Given the same transformer module, the latents equal those of diffusers' `QwenImageEditPipeline` to the bit.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qwen_edit.edit.geometry import default_size
from qwen_edit.edit.hooks import Hooks, Step
from qwen_edit.edit.plan import Plan
from qwen_edit.errors import Cancelled, InvalidRequest
from qwen_edit.machine.device import out_of_memory
from qwen_edit.model.content_cache import picture_key
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.model.preview import Projection
from qwen_edit.model.vae import (
    PIXELS_PER_LATENT,
    PIXELS_PER_TOKEN,
    decode_latents,
    encode_pixels,
    grid,
    packed,
    to_pixels,
    unpacked,
)


def denoise(
    pipeline: EditPipeline, picture: Image.Image, prompt: str, plan: Plan, hooks: Hooks, first: int | None = None
) -> Tensor:
    """All of an edit up to the latents.

    Args:
        picture: RGB.
        hooks: `on_step` is not called any more once `is_cancelled` is set.
        first: how many of the plan's steps are done, from the first on; all where left out.

    Returns:
        Normalized latents of `plan.num_images` pictures: [batch, channels, 1, height / 8, width / 8].

    Raises:
        InvalidRequest: the prompt has more tokens than the picture leaves room for.
        Cancelled: the flag was set.
        OutOfMemory: the device's memory does not suffice.
    """
    shown_size, size = default_size(picture.size), (plan.width, plan.height)
    for field, text in (("prompt", prompt), ("negative_prompt", plan.negative_prompt or "")):
        _require_room(pipeline, field, text, shown_size, size)
    with torch.inference_mode(), _fitting(plan.num_images, *size), pipeline.stopwatch.stage("denoise"):
        _stop_if(hooks)
        shown = picture.resize(shown_size, Image.Resampling.LANCZOS)
        conditions = _conditions(pipeline, shown, prompt, plan)
        pixels, reference = _reference(pipeline, shown)
        latents = _noise(plan, reference)
        timesteps = _timesteps(pipeline.scheduler, plan.steps, latents.shape[1], latents.device)
        shapes = [[(1, *grid(size)), (1, *grid(shown_size))]]
        with pipeline.transformer_ready(latents.dtype) as set_step:
            for step, timestep in enumerate(timesteps[:first]):
                set_step(step)
                prediction = _guided(pipeline, latents, reference, conditions, timestep, shapes, plan.true_cfg_scale)
                latents = pipeline.scheduler.step(prediction, timestep, latents, return_dict=False)[0]
                _stop_if(hooks)
                hooks.on_step(Step(step + 1, plan.steps, partial(_preview, latents, size, reference, pixels)))
        return unpacked(latents, size)


def decode(pipeline: EditPipeline, latents: Tensor) -> list[Image.Image]:
    """The pictures that `denoise` gave the latents of.

    Raises:
        OutOfMemory: the device's memory does not suffice.
    """
    height, width = (side * PIXELS_PER_LATENT for side in latents.shape[-2:])
    with torch.inference_mode(), _fitting(len(latents), width, height), pipeline.stopwatch.stage("vae_decode"):
        return decode_latents(pipeline.vae, latents)


def _require_room(
    pipeline: EditPipeline, field: str, text: str, shown_size: tuple[int, int], size: tuple[int, int]
) -> None:
    """Text and pictures share the rotary table: the text starts where the larger half side of a picture ends."""
    tokens = pipeline.prompts.token_count(text, shown_size)
    start = max(side // PIXELS_PER_TOKEN // 2 for side in (*shown_size, *size))
    room = len(pipeline.transformer.pos_embed.pos_freqs) - start
    if tokens > room:
        raise InvalidRequest(
            f"{field} is too long: with this picture it makes {tokens} tokens, of which {room} fit; "
            f"shorten it by about {tokens - room} tokens",
            field,
        )


def _conditions(pipeline: EditPipeline, shown: Image.Image, prompt: str, plan: Plan) -> list[Tensor]:
    """The text encoder's states for the prompt and, with guidance, for the negative one: [batch, tokens, width]."""
    key = picture_key(shown)
    texts = [prompt] if plan.negative_prompt is None or plan.true_cfg_scale <= 1 else [prompt, plan.negative_prompt]
    with pipeline.stopwatch.stage("prompt"):
        states = [pipeline.encoded_prompt(text, shown, key) for text in texts]
        return [one.repeat(plan.num_images, 1, 1) for one in states]


def _reference(pipeline: EditPipeline, shown: Image.Image) -> tuple[Tensor, Tensor]:
    """The picture's pixels, [1, 3, 1, height, width] in −1 … 1, and its packed latents, [1, tokens, channels · 4]."""
    with pipeline.stopwatch.stage("vae_encode"):
        pixels = to_pixels(shown)
        latents = pipeline.encoded_picture(
            (picture_key(shown), pipeline.vae.use_tiling),
            lambda: encode_pixels(pipeline.vae, pixels.to(pipeline.device, pipeline.dtype)),
        )
        return pixels, packed(latents)


def _noise(plan: Plan, like: Tensor) -> Tensor:
    """Packed noise for each picture from its own seed: [batch, tokens, channels · 4], all else as of `like`.

    It is drawn on the CPU whatever the device, so that a seed means the same noise everywhere.
    """
    shape = (1, like.shape[-1] // 4, 1, plan.height // PIXELS_PER_LATENT, plan.width // PIXELS_PER_LATENT)
    seeds = [(plan.seed + i) % 2**63 for i in range(plan.num_images)]
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype) for seed in seeds]
    return packed(torch.cat(drawn).to(like.device))


def _timesteps(scheduler: Any, steps: int, tokens: int, device: torch.device) -> Tensor:  # noqa: ANN401 - untyped
    """Begin a schedule: its timesteps, 0 … 1000, float32 [steps]."""
    sigmas = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=sigmas, device=device, mu=_shift(scheduler.config, tokens))
    scheduler.set_begin_index(0)
    timesteps: Tensor = scheduler.timesteps
    return timesteps


def _shift(config: Mapping[str, float], tokens: int) -> float:
    """How far a schedule leans towards noise: linear in the tokens of a picture, as `calculate_shift` of diffusers."""
    least, most = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (most - least)
    return tokens * slope + (config["base_shift"] - slope * least)


def _guided(
    pipeline: EditPipeline,
    latents: Tensor,
    reference: Tensor,
    conditions: list[Tensor],
    timestep: Tensor,
    shapes: list[list[tuple[int, int, int]]],
    scale: float,
) -> Tensor:
    """The velocity that the transformer predicts, [batch, tokens, channels · 4].

    With a negative condition: `n + scale · (c − n)`, scaled token by token to the length of c.
    """
    both = torch.cat([latents, reference.expand(len(latents), -1, -1)], dim=1)
    at = timestep.expand(len(latents)).to(latents.dtype) / 1000
    predictions: list[Tensor] = [
        pipeline.transformer(
            hidden_states=both,
            timestep=at,
            guidance=None,
            encoder_hidden_states_mask=None,
            encoder_hidden_states=states,
            img_shapes=shapes,
            attention_kwargs={},
            return_dict=False,
        )[0][:, : latents.shape[1]]
        for states in conditions
    ]
    if len(predictions) == 1:
        return predictions[0]
    conditional, negative = predictions
    combined = negative + scale * (conditional - negative)
    length, other = (torch.linalg.vector_norm(one, dim=-1, keepdim=True) for one in (conditional, combined))
    guided: Tensor = combined * (length / other)
    return guided


def _preview(latents: Tensor, size: tuple[int, int], reference: Tensor, pixels: Tensor) -> Image.Image:
    height, width = pixels.shape[-2:]
    projection = Projection(unpacked(reference, (width, height))[0, :, 0], pixels[0, :, 0])
    return projection.preview(unpacked(latents, size)[0, :, 0])


def _fitting(count: int, width: int, height: int) -> AbstractContextManager[None]:
    return out_of_memory(
        f"{count} picture(s) of {width} × {height} pixels do not fit the device's memory; "
        "ask for a smaller width and height or fewer num_images"
    )


def _stop_if(hooks: Hooks) -> None:
    if hooks.is_cancelled():
        raise Cancelled("the edit was cancelled")
