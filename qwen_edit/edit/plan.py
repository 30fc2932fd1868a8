"""What is asked for and what is on disk → what runs. A difference between the two is always a warning."""

import secrets
from dataclasses import dataclass

from qwen_edit.contract.request import MAX_SEED, EditRequest
from qwen_edit.edit import geometry
from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.catalog import RANK, Checkpoint


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


def supported_steps(on_disk: tuple[Checkpoint, ...]) -> list[int]:
    """The step counts that run as asked, in order."""
    return sorted({steps for checkpoint in on_disk for steps in checkpoint.steps})


def plan(request: EditRequest, picture_size: tuple[int, int], on_disk: tuple[Checkpoint, ...]) -> Plan:
    """Decide what runs.

    Args:
        picture_size: width and height of the picture to edit, in pixels.
        on_disk: as from `store.folder.available`.

    Raises:
        ModelUnavailable: nothing is on disk.
    """
    if not on_disk:
        raise ModelUnavailable("no checkpoint lies below MODEL_CACHE_DIR; fetch one with `python -m builder bake`")
    checkpoint, steps = _checkpoint_and_steps(request.steps, on_disk)
    scale = checkpoint.true_cfg_scale if request.true_cfg_scale is None else request.true_cfg_scale
    width, height = geometry.size(request.width, request.height, picture_size)
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
            *geometry.warnings(request.width, request.height, (width, height)),
        ),
    )


def usual_plan(checkpoint: Checkpoint, side: int) -> Plan:
    """What runs where a request asks for nothing in particular, for a square of so many pixels a side."""
    return Plan(
        checkpoint=checkpoint,
        steps=checkpoint.default_steps,
        true_cfg_scale=checkpoint.true_cfg_scale,
        negative_prompt=" " if checkpoint.true_cfg_scale > 1 else None,
        seed=0,
        width=side,
        height=side,
        num_images=1,
    )


def _checkpoint_and_steps(asked: int | None, on_disk: tuple[Checkpoint, ...]) -> tuple[Checkpoint, int]:
    for checkpoint in on_disk:
        if asked is not None and asked in checkpoint.steps:
            return checkpoint, asked
    return on_disk[0], on_disk[0].default_steps


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
