"""The checkpoints that are served, as rows of one frozen table. No torch here: validation must not wait for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

MODELS = Path("/app/models")
"""Where the model directory is inside the container image, and wherever nothing else is said."""

BASE_REPOSITORY = "Qwen/Qwen-Image-Edit"
BASE_FOLDER = "Qwen--Qwen-Image-Edit"
CHECKPOINT_REPOSITORY = "nunchaku-tech/nunchaku-qwen-image-edit"
CHECKPOINT_FOLDER = "nunchaku-qwen-image-edit"

RANK = 128
"""The one rank that is served."""

OLD_RANKS = (32, 64)
"""Ranks that clients of older workers ask for; they run at `RANK` with a warning."""

OLD_STEPS = 4
"""The step count of 4-step distillations, which are not served; it runs as the default with a warning."""

# The distilled schedule, as the Lightning authors publish it with their weights: flow matching with a constant shift of
# 3 (so mu = log 3 at every size) and no terminal stretch.
LIGHTNING_SCHEDULE: Mapping[str, object] = MappingProxyType(
    {
        "base_image_seq_len": 256,
        "base_shift": math.log(3),
        "invert_sigmas": False,
        "max_image_seq_len": 8192,
        "max_shift": math.log(3),
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": None,
        "stochastic_sampling": False,
        "time_shift_type": "exponential",
        "use_beta_sigmas": False,
        "use_dynamic_shifting": True,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    }
)


@dataclass(frozen=True)
class Checkpoint:
    """One SVDQuant int4 transformer file and how it is meant to be run.

    `steps` are the step counts it runs as asked. `schedule` is the scheduler's whole configuration, or None for the one
    that the base model carries on disk.
    """

    name: str
    file: str
    steps: range
    default_steps: int
    true_cfg_scale: float
    schedule: Mapping[str, object] | None
    rank: int = RANK

    @property
    def path(self) -> str:
        """Where the file lies below the model directory, with forward slashes."""
        return f"{CHECKPOINT_FOLDER}/{self.file}"


LIGHTNING = Checkpoint(
    name="lightning",
    file="svdq-int4_r128-qwen-image-edit-lightningv1.0-8steps.safetensors",
    steps=range(8, 9),
    default_steps=8,
    true_cfg_scale=1.0,
    schedule=LIGHTNING_SCHEDULE,
)

ORIGINAL = Checkpoint(
    name="original",
    file="svdq-int4_r128-qwen-image-edit.safetensors",
    steps=range(20, 51),
    default_steps=40,
    true_cfg_scale=4.0,
    schedule=None,
)

CHECKPOINTS = (LIGHTNING, ORIGINAL)
"""Every checkpoint, the preferred one first."""
