"""handler.py on a device that takes the time it is told to and fails as a GPU can; everything around it is real.

A prompt says what happens: "pace 0.2" sleeps so many seconds a step, and the words of `FAULTS` fail before the first one.
Its pictures are noise, which no encoder makes smaller.
"""

import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qwen_edit.models import pipeline as models
from qwen_edit.models.pipeline import EditPipeline

HANDLER = Path(__file__).parents[2] / "handler.py"
PACE = 0.02
"""Seconds a step, where the prompt does not say."""

_exhausted: set[str] = set()
_answers = EditPipeline.answers


def _run_out_of_memory(prompt: str) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def _run_out_of_memory_once(prompt: str) -> None:
    if prompt not in _exhausted:
        _exhausted.add(prompt)
        _run_out_of_memory(prompt)


def _fail(prompt: str) -> None:
    raise RuntimeError(f"a secret of {__file__}")


def _fail_late(prompt: str) -> None:
    time.sleep(2)
    _fail(prompt)


def _break(prompt: str) -> None:
    EditPipeline.answers = _answer_no_more  # type: ignore[method-assign]
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _answer_no_more(pipeline: EditPipeline) -> bool:
    # Once, so that the tests which follow have a device.
    EditPipeline.answers = _answers  # type: ignore[method-assign]
    return False


def _exit(prompt: str) -> None:
    sys.exit("a library gives up")


FAULTS: dict[str, Callable[[str], None]] = {
    "out of memory": _run_out_of_memory,
    "out of memory once": _run_out_of_memory_once,
    "fail": _fail,
    "fail late": _fail_late,
    "break": _break,
    "exit": _exit,
}


def call(pipeline: EditPipeline, *, prompt: str, **asked: Any) -> SimpleNamespace:
    """In place of the stock pipeline's call: empty latents, after the steps that were asked for."""
    FAULTS.get(prompt, lambda prompt: None)(prompt)
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


def decode(vae: object, latents: Tensor) -> list[Image.Image]:
    """In place of the VAE: [batch, channels, 1, height / 8, width / 8] → as many pictures of noise."""
    width, height = latents.shape[-1] * 8, latents.shape[-2] * 8
    return [Image.frombytes("RGB", (width, height), os.urandom(width * height * 3)) for _ in latents]


def install() -> None:
    """Replace the device in this process."""
    EditPipeline.__call__ = call  # type: ignore[method-assign]
    models.decode_latents = decode  # type: ignore[assignment]


if __name__ == "__main__":
    install()
    runpy.run_path(str(HANDLER), run_name="__main__")
