"""What is asked for and what is on disk → what runs. A difference between the two is always a warning."""

import math
import secrets
from dataclasses import dataclass
from pathlib import Path

from qwen_edit.catalog import CHECKPOINTS, RANK, Checkpoint
from qwen_edit.errors import ModelUnavailable
from qwen_edit.schema import MAX_SEED, EditRequest

TARGET_AREA = 1024 * 1024
"""Pixels of a result whose size was left open, and of the reference that the model sees: what it was trained on."""

_OPEN_SIDE_STEP = 32
"""Pixels. `QwenImageEditPipeline.calculate_dimensions` rounds the sides that it chooses to this."""

_ASKED_SIDE_STEP = 16
"""Pixels. One token of the transformer: 2 × 2 latent pixels, of 8 × 8 pixels each."""


@dataclass(frozen=True)
class Plan:
    """Everything that a request left open, decided. `negative_prompt` is None where guidance is off."""

    checkpoint: Checkpoint
    steps: int
    true_cfg_scale: float
    negative_prompt: str | None
    seed: int
    width: int
    height: int
    num_images: int
    warnings: tuple[str, ...] = ()


def available(models: Path) -> tuple[Checkpoint, ...]:
    """The checkpoints whose file lies below a model directory, the preferred one first."""
    return tuple(checkpoint for checkpoint in CHECKPOINTS if (models / checkpoint.path).is_file())


def supported_steps(on_disk: tuple[Checkpoint, ...]) -> list[int]:
    """The step counts that run as asked, in order."""
    return sorted({steps for checkpoint in on_disk for steps in checkpoint.steps})


def plan(request: EditRequest, picture_size: tuple[int, int], on_disk: tuple[Checkpoint, ...]) -> Plan:
    """Decide what runs.

    Args:
        picture_size: width and height of the picture to edit, in pixels.
        on_disk: as from `available`.

    Raises:
        ModelUnavailable: nothing is on disk.
    """
    if not on_disk:
        raise ModelUnavailable("no checkpoint lies below MODEL_CACHE_DIR; fetch one with `python -m builder bake`")
    checkpoint, steps = _checkpoint_and_steps(request.steps, on_disk)
    scale = checkpoint.true_cfg_scale if request.true_cfg_scale is None else request.true_cfg_scale
    width, height = _size(request, picture_size)
    return Plan(
        checkpoint=checkpoint,
        steps=steps,
        true_cfg_scale=scale,
        negative_prompt=request.negative_prompt if scale > 1 else None,
        seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
        width=width,
        height=height,
        num_images=request.num_images,
        warnings=(
            *_rank_warnings(request.rank, checkpoint),
            *_steps_warnings(request.steps, steps, checkpoint),
            *_guidance_warnings(request.negative_prompt, scale, checkpoint),
            *_size_warnings(request, width, height),
        ),
    )


def default_size(picture_size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of about `TARGET_AREA` in the picture's shape, as `QwenImageEditPipeline` chooses them."""
    ratio = picture_size[0] / picture_size[1]
    width = math.sqrt(TARGET_AREA * ratio)
    return _rounded(width, _OPEN_SIDE_STEP), _rounded(width / ratio, _OPEN_SIDE_STEP)


def _checkpoint_and_steps(asked: int | None, on_disk: tuple[Checkpoint, ...]) -> tuple[Checkpoint, int]:
    for checkpoint in on_disk:
        if asked is not None and asked in checkpoint.steps:
            return checkpoint, asked
    return on_disk[0], on_disk[0].default_steps


def _size(request: EditRequest, picture_size: tuple[int, int]) -> tuple[int, int]:
    if request.width is None or request.height is None:
        return default_size(picture_size)
    return _rounded(request.width, _ASKED_SIDE_STEP), _rounded(request.height, _ASKED_SIDE_STEP)


def _rounded(side: float, step: int) -> int:
    return round(side / step) * step


def _rank_warnings(asked: int, checkpoint: Checkpoint) -> tuple[str, ...]:
    if asked == checkpoint.rank:
        return ()
    return (f"rank {asked} was asked for, which is not served: rank {RANK} runs instead",)


def _steps_warnings(asked: int | None, steps: int, checkpoint: Checkpoint) -> tuple[str, ...]:
    if asked in (None, steps):
        return ()
    return (
        f"steps {asked} was asked for, which no checkpoint on disk runs: "
        f"the {checkpoint.name} checkpoint runs {steps} steps instead",
    )


def _guidance_warnings(negative_prompt: str, scale: float, checkpoint: Checkpoint) -> tuple[str, ...]:
    if scale <= 1:
        unused = "negative_prompt is not used: guidance is off at true_cfg_scale 1"
        return (unused,) if negative_prompt.strip() else ()
    if checkpoint.true_cfg_scale > 1:
        return ()
    return (
        f"true_cfg_scale {scale:g} was asked for and runs, but the {checkpoint.name} checkpoint is distilled to run at "
        f"{checkpoint.true_cfg_scale:g}, and each step takes twice as long",
    )


def _size_warnings(request: EditRequest, width: int, height: int) -> tuple[str, ...]:
    if request.width is None or (request.width, request.height) == (width, height):
        return ()
    return (
        f"{request.width} × {request.height} was asked for: {width} × {height} runs instead, "
        f"because sides are multiples of {_ASKED_SIDE_STEP}",
    )
