import inspect

import pytest

from qwen_edit.store.catalog import (
    CHECKPOINTS,
    LIGHTNING,
    LIGHTNING_SCHEDULE,
    OLD_RANKS,
    OLD_STEPS,
    ORIGINAL,
    RANK,
    Checkpoint,
)


def test_lightning_is_preferred() -> None:
    assert CHECKPOINTS == (LIGHTNING, ORIGINAL)


def test_the_files_are_those_of_the_production_layout() -> None:
    assert [checkpoint.path for checkpoint in CHECKPOINTS] == [
        "nunchaku-qwen-image-edit/svdq-int4_r128-qwen-image-edit-lightningv1.0-8steps.safetensors",
        "nunchaku-qwen-image-edit/svdq-int4_r128-qwen-image-edit.safetensors",
    ]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.name)
def test_a_checkpoint_runs_its_own_defaults(checkpoint: Checkpoint) -> None:
    assert checkpoint.default_steps in checkpoint.steps
    assert checkpoint.true_cfg_scale >= 1
    assert checkpoint.rank == RANK
    assert f"_r{RANK}-" in checkpoint.file


def test_no_step_count_belongs_to_two_checkpoints() -> None:
    assert not set(LIGHTNING.steps) & set(ORIGINAL.steps)


def test_what_older_clients_ask_for_is_not_what_is_served() -> None:
    assert RANK not in OLD_RANKS
    assert all(OLD_STEPS not in checkpoint.steps for checkpoint in CHECKPOINTS)


def test_the_lightning_schedule_names_every_setting_of_the_scheduler() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    settings = set(inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters) - {"self"}
    assert set(LIGHTNING_SCHEDULE) == settings


@pytest.mark.parametrize("mu_of_tokens", [256, 4096, 8192])
def test_the_lightning_schedule_shifts_by_three_at_every_size(mu_of_tokens: int) -> None:
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(LIGHTNING_SCHEDULE))
    config = scheduler.config
    mu = calculate_shift(
        mu_of_tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    even = np.linspace(1, 1 / 8, 8)
    scheduler.set_timesteps(sigmas=even, mu=mu)
    assert scheduler.sigmas[:-1].numpy() == pytest.approx(3 * even / (1 + 2 * even))
    assert scheduler.sigmas[-1] == 0
