"""handler.py on a device that takes the time it is told to and fails as a GPU can; everything around it is real.

A prompt says what happens: "pace 0.2" sleeps so many seconds a step, and the name of one of `Faults` fails.
Its pictures are noise, which no encoder makes smaller.
"""

import os
import runpy
import sys
import time
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor

from qwen_edit.model import pipeline as models
from qwen_edit.model.pipeline import EditPipeline
from tests.support.places import ROOT

HANDLER = ROOT / "handler.py"
PACE = 0.02
"""Seconds a step, where the prompt does not say."""

_answers = EditPipeline.answers


class Faults:
    """What a prompt can ask for."""

    def __init__(self) -> None:
        self._was_full = False

    def out_of_memory(self) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def out_of_memory_once(self) -> None:
        if not self._was_full:
            self._was_full = True
            self.out_of_memory()

    def fail(self) -> NoReturn:
        raise RuntimeError(f"a secret of {__file__}")

    def fail_late(self) -> NoReturn:
        time.sleep(2)
        self.fail()

    def break_down(self) -> NoReturn:
        EditPipeline.answers = _answer_no_more  # type: ignore[method-assign]
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def leave(self) -> NoReturn:
        sys.exit("a library gives up")


def _answer_no_more(self: EditPipeline) -> bool:  # noqa: ARG001 - it stands in for a method
    # Once, so that the tests which follow have a device.
    EditPipeline.answers = _answers  # type: ignore[method-assign]
    return False


FAULTS = Faults()


def call(pipeline: EditPipeline, *, prompt: str, **asked: Any) -> SimpleNamespace:
    """In place of the stock pipeline's call: empty latents, after the steps that were asked for."""
    getattr(FAULTS, prompt, lambda: None)()
    for stage in ("prompt", "vae_encode"):
        with pipeline.stopwatch.stage(stage):
            pass
    words = prompt.split()
    pace = float(words[1]) if words[0] == "pace" else PACE
    latents = torch.zeros(asked["num_images_per_prompt"], asked["height"] // 16 * asked["width"] // 16, 64)
    for step in range(asked["num_inference_steps"]):
        time.sleep(pace)
        asked["callback_on_step_end"](pipeline, step, None, {"latents": latents})
    return SimpleNamespace(images=latents)


def decode(vae: Any, latents: Tensor) -> list[Image.Image]:  # noqa: ARG001 - it stands in
    """In place of the VAE: [batch, channels, 1, height / 8, width / 8] → as many pictures of noise."""
    width, height = latents.shape[-1] * 8, latents.shape[-2] * 8
    return [Image.frombytes("RGB", (width, height), os.urandom(width * height * 3)) for _ in latents]


def install() -> None:
    """Replace the device in this process."""
    EditPipeline.__call__ = call
    models.decode_latents = decode  # type: ignore[attr-defined]


if __name__ == "__main__":
    install()
    runpy.run_path(str(HANDLER), run_name="__main__")
