"""handler.py on a device that works as long as it is told to and fails as a GPU can; everything around it is real.

A prompt says what happens: "pace 0.2" takes so many seconds a step, "gate" and "decoded" are those of
`tests.support.gates`, and the name of one of `Faults` fails after the steps.
Its pictures are noise, which no encoder makes smaller.
"""

import os
import runpy
import sys
import threading
import time
from functools import partial
from typing import NoReturn

import torch
from PIL import Image
from torch import Tensor

from qwen_edit.contract.request import EditRequest
from qwen_edit.edit.hooks import Hooks, Step
from qwen_edit.edit.plan import Plan
from qwen_edit.edit.prepare import Prepared
from qwen_edit.errors import Cancelled, OutOfMemory
from qwen_edit.model import render
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.serving import device_thread, service
from qwen_edit.settings import Settings
from tests.support.gates import Arrival, announce, held, port_after
from tests.support.places import ROOT

HANDLER = ROOT / "handler.py"
_prepare = service.prepare  # type: ignore[attr-defined]


class Faults:
    """What a prompt can ask for."""

    def __init__(self) -> None:
        self._was_full = False

    def out_of_memory(self) -> NoReturn:
        raise OutOfMemory("1 picture(s) of 256 × 256 pixels do not fit the device's memory")

    def out_of_memory_once(self) -> None:
        if not self._was_full:
            self._was_full = True
            self.out_of_memory()

    def fail(self) -> NoReturn:
        raise RuntimeError(f"a secret of {__file__}")

    def die(self) -> NoReturn:
        EditPipeline.answers = _never_answer  # type: ignore[method-assign]
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def leave(self) -> NoReturn:
        sys.exit("a library gives up")


def _never_answer(self: EditPipeline) -> bool:  # noqa: ARG001 - it stands in for a method
    return False


FAULTS = Faults()


def denoise(
    pipeline: EditPipeline,
    picture: Image.Image,  # noqa: ARG001 - it stands in for the loop
    prompt: str,
    plan: Plan,
    hooks: Hooks,
    first: int | None = None,
) -> Tensor:
    """In place of the loop: empty latents, after the steps that were asked for."""
    for stage in ("prompt", "vae_encode"):
        with pipeline.stopwatch.stage(stage):
            pass
    hooks = held(hooks, prompt)
    with pipeline.stopwatch.stage("denoise"):
        for step in range(plan.steps if first is None else first):
            time.sleep(pace_of(prompt))
            if hooks.is_cancelled():
                raise Cancelled("the edit was cancelled")
            hooks.on_step(Step(step + 1, plan.steps, lambda: Image.new("RGB", (32, 32))))
    if (port := port_after("hang", prompt)) is not None:
        Arrival(port)
        threading.Event().wait()
    for word in prompt.split():
        getattr(FAULTS, word, lambda: None)()
    return torch.zeros(plan.num_images, 16, 1, plan.height // 8, plan.width // 8)


def decode(pipeline: EditPipeline, latents: Tensor) -> list[Image.Image]:
    """In place of the VAE: [batch, channels, 1, height / 8, width / 8] → as many pictures of noise."""
    width, height = latents.shape[-1] * 8, latents.shape[-2] * 8
    with pipeline.stopwatch.stage("vae_decode"):
        return [Image.frombytes("RGB", (width, height), os.urandom(width * height * 3)) for _ in latents]


def pace_of(prompt: str) -> float:
    """Seconds a step; none where the prompt does not say."""
    words = prompt.split()
    return float(words[1]) if words[0] == "pace" else 0.0


def prepare(request: EditRequest, settings: Settings) -> Prepared:
    """As ever; a prompt may ask to be told of it."""
    prepared = _prepare(request, settings)
    announce(request.prompt)
    return prepared


def install() -> None:
    """Replace the device in this process."""
    vars(render).update(denoise=denoise, decode=decode)
    vars(service).update(prepare=prepare)
    vars(device_thread).update(Patience=partial(device_thread.Patience, stop=0.5, close=0.5, look=0.05))


if __name__ == "__main__":
    install()
    runpy.run_path(str(HANDLER), run_name="__main__")
