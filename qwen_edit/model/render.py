"""From a plan to pictures, and once more with less memory where it did not suffice."""

from dataclasses import replace

from PIL import Image
from torch import Tensor

from qwen_edit.edit.hooks import Hooks, OnStep, Step
from qwen_edit.edit.plan import Plan
from qwen_edit.errors import OutOfMemory
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.model.sampling import decode, denoise

_SHORT = "the device was short of memory: {what}, so the same seed can give a slightly different picture elsewhere"

ONE_AT_A_TIME = _SHORT.format(what="the pictures were made one at a time and the VAE worked in tiles")
IN_TILES = _SHORT.format(what="the VAE decoded in tiles")


def render(
    pipeline: EditPipeline, picture: Image.Image, prompt: str, plan: Plan, hooks: Hooks, first: int | None = None
) -> tuple[list[Image.Image], tuple[str, ...]]:
    """Edit one picture as planned; see `sampling.denoise` for the arguments.

    Where memory does not suffice for the steps, they are done again for one picture after the other. Where it does not
    suffice for decoding what they gave, that alone is done again. Either way the steps that `on_step` is told of rise.

    Returns:
        `plan.num_images` pictures, the one at i drawn from the seed plus i, and a sentence where memory was saved.

    Raises:
        EditError: see `sampling`; `OutOfMemory` where the second try had not enough either.
    """
    latents, is_short = _denoised(pipeline, picture, prompt, plan, hooks, first)
    if not is_short:
        try:
            return [made for one in latents for made in decode(pipeline, one)], ()
        except OutOfMemory:
            pass  # the retry begins outside, where the error no longer holds on to the tensors of its frames
    with pipeline.saving_memory():
        pictures = [made for one in latents for made in decode(pipeline, one)]
    return pictures, (ONE_AT_A_TIME if is_short else IN_TILES,)


def _denoised(
    pipeline: EditPipeline, picture: Image.Image, prompt: str, plan: Plan, hooks: Hooks, first: int | None
) -> tuple[list[Tensor], bool]:
    """Latents of all pictures together, or of one after the other where memory was short, and whether it was."""
    rising = _Rising(hooks)
    try:
        return [denoise(pipeline, picture, prompt, plan, rising.part(0, 1), first)], False
    except OutOfMemory:
        pass  # as above
    alone = _one_at_a_time(plan)
    with pipeline.saving_memory():
        return [
            denoise(pipeline, picture, prompt, one, rising.part(i, len(alone)), first) for i, one in enumerate(alone)
        ], True


def _one_at_a_time(plan: Plan) -> list[Plan]:
    """The same pictures, one each: the one at i is drawn from the seed plus i."""
    return [replace(plan, num_images=1, seed=(plan.seed + i) % 2**63) for i in range(plan.num_images)]


class _Rising:
    """Tells steps on as those of one edit that only goes forward, however often some of it is done."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._reached = 0

    def part(self, index: int, count: int) -> Hooks:
        """The hooks of one of `count` equal parts."""
        return replace(self._hooks, on_step=self._taking(index, count))

    def _taking(self, index: int, count: int) -> OnStep:
        def take(step: Step) -> None:
            number = (index * step.steps + step.number) // count
            if number > self._reached:
                self._reached = number
                self._hooks.on_step(replace(step, number=number))

        return take
