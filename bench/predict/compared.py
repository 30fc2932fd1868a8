"""What was measured on a card over what was predicted for it. torch is asked for the card, nothing runs on it."""

from collections.abc import Mapping

import torch

from bench.gpu.memory import TEXT_ENCODER_BYTES, VAE_BYTES, real_checkpoint, real_sizes
from bench.predict.cards import Attention, known
from bench.predict.seconds import STEPS, Run, predict, step_of
from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.backend import BackendName, Card
from qwen_edit.machine.engine import Engine
from qwen_edit.machine.setup import choose_setup
from qwen_edit.settings import Settings

CUDNN_PREFERRED = 91500
"""PyTorch prefers cuDNN's attention on Hopper and the data centre's Blackwell where cuDNN is later than this: 9.15.0
(`sdp_utils.cpp`)."""

CUDNN_CAPABILITIES = ((9, 0), (10, 0), (10, 3))

Figures = Mapping[str, float]


def run_of(name: str, card: Card, cudnn: int | None) -> Run | None:
    """How the transformer runs in a run of `bench.gpu`; None for a run that is not predicted.

    Args:
        name: a backend with changes after plus signs.
        cudnn: its version as a number, as PyTorch reports it.
    """
    backend, *changes = name.split("+")
    if backend not in ("dense", "dense-fp8", "nunchaku"):
        return None
    preferred = card.capability in CUDNN_CAPABILITIES and (cudnn or 0) > CUDNN_PREFERRED
    attention: Attention = "cudnn" if "flash" not in changes and (preferred or "cudnn" in changes) else "flash"
    names: Mapping[str, BackendName] = {"dense": "dense", "dense-fp8": "dense-fp8", "nunchaku": "nunchaku"}
    fused = "fused" in changes if backend == "nunchaku" else "torch" not in changes
    return Run(names[backend], attention, compiled="compile" in changes, fused=fused)


def predicted(run: str, measured: Figures, card: Card, cudnn: int | None, steps: int) -> dict[str, float]:
    """The figures of `Prediction.figures` for a run that was measured with full-size weights at 1024 × 1024 pixels.

    The step is predicted for the tokens that were counted. Empty for a card or a run that is not known, or that the
    model does not fit.
    """
    name, way_of_running = known(card.name, card.total), run_of(run.removesuffix(", cold"), card, cudnn)
    if name is None or way_of_running is None:
        return {}
    sizes = real_sizes(way_of_running.backend)
    settings = Settings(backend=way_of_running.backend)
    try:
        _, way = choose_setup(settings, card, Engine("installed", None), real_sizes)
        assert way is not None
        read = TEXT_ENCODER_BYTES + VAE_BYTES + real_checkpoint().packed_bytes
        whole = predict(name, way_of_running, way, sizes, read)
        tokens = int(measured.get("image tokens", 0) + measured.get("text tokens", 0))
        step = step_of(name, way_of_running, tokens).total if tokens else whole.step.total
    except (ModelUnavailable, ValueError):
        return {}
    beside = whole.edit - STEPS * whole.step.total
    load = whole.load if run.endswith(", cold") else whole.load_cached
    return {**whole.figures(), "load": load, "step": step, "edit": steps * step + beside}


def ratios(measured: Figures, expected: Figures) -> dict[str, float]:
    """Measured over predicted, of the figures that are in both."""
    return {name: measured[name] / value for name, value in expected.items() if name in measured}


def this_card() -> Card | None:
    """The first GPU; None without one."""
    if not torch.cuda.is_available() or torch.version.hip:
        return None
    free, total = torch.cuda.mem_get_info()
    return Card(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), total, free)
