"""The nunchaku backend with the stand-in for its engine."""

import sys
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

from qwen_edit.model.transformer.expansion import FORMATS, expand, portions_of
from qwen_edit.model.transformer.nunchaku import load_nunchaku
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.weights.reader import Weights
from tests.support.places import ROOT

STAND_IN = ROOT / "tests" / "support" / "stand_in"
CPU = torch.device("cpu")


def forget_engine() -> None:
    """Let the next test import the engine anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "nunchaku"]:
        del sys.modules[name]


def changed_engine(folder: Path, file: str, change: str) -> None:
    """A copy of the stand-in in an empty folder, with a line more at the end of one of its files."""
    for source in STAND_IN.rglob("*.py"):
        target = folder / source.relative_to(STAND_IN)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text())
    with (folder / "nunchaku" / file).open("a") as source_of:
        source_of.write(change + "\n")


def load(path: Path, dtype: torch.dtype = torch.float32, *, fused_qkv: bool = False) -> QwenImageTransformer2DModel:
    """The engine's transformer with a checkpoint, on the CPU."""
    return load_nunchaku(read_header(path), expanded(path, dtype), dtype, fused_qkv=fused_qkv)


def expanded(path: Path, dtype: torch.dtype, device: torch.device = CPU) -> dict[str, torch.Tensor]:
    """What a load makes of a checkpoint for the engine."""
    info, form = read_header(path), FORMATS["nunchaku"]
    with Weights([path], device, portions={path: portions_of(info, form)}) as weights:
        return expand(info, weights.portions(path), form, dtype).tensors
