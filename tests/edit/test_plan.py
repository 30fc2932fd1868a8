import itertools
from pathlib import Path
from typing import Any

import pytest

from qwen_edit.contract.request import MAX_SEED, EditRequest
from qwen_edit.edit.geometry import default_size
from qwen_edit.edit.plan import Plan, plan, supported_steps
from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.catalog import CHECKPOINTS, LIGHTNING, ORIGINAL, Checkpoint
from qwen_edit.store.folder import available

BOTH, LIGHTNING_ONLY, ORIGINAL_ONLY = CHECKPOINTS, (LIGHTNING,), (ORIGINAL,)


def planned(on_disk: tuple[Checkpoint, ...] = BOTH, size: tuple[int, int] = (640, 480), **fields: object) -> Plan:
    return plan(EditRequest.parse({"image": "aGVsbG8=", "prompt": "make it snow", **fields}), size, on_disk)


def put_on_disk(models: Path, checkpoint: Checkpoint) -> None:
    path = models / checkpoint.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")


def test_only_files_that_are_there_are_available(tmp_path: Path) -> None:
    assert available(tmp_path / "absent") == ()
    put_on_disk(tmp_path, ORIGINAL)
    assert available(tmp_path) == ORIGINAL_ONLY
    put_on_disk(tmp_path, LIGHTNING)
    assert available(tmp_path) == (LIGHTNING, ORIGINAL)


def test_a_folder_in_the_place_of_a_checkpoint_is_not_available(tmp_path: Path) -> None:
    (tmp_path / LIGHTNING.path).mkdir(parents=True)
    assert available(tmp_path) == ()


TABLE = [
    (None, BOTH, LIGHTNING, 8, False),
    (None, LIGHTNING_ONLY, LIGHTNING, 8, False),
    (None, ORIGINAL_ONLY, ORIGINAL, 40, False),
    (8, BOTH, LIGHTNING, 8, False),
    (8, LIGHTNING_ONLY, LIGHTNING, 8, False),
    (8, ORIGINAL_ONLY, ORIGINAL, 40, True),
    (4, BOTH, LIGHTNING, 8, True),
    (4, LIGHTNING_ONLY, LIGHTNING, 8, True),
    (4, ORIGINAL_ONLY, ORIGINAL, 40, True),
    (20, BOTH, ORIGINAL, 20, False),
    (20, LIGHTNING_ONLY, LIGHTNING, 8, True),
    (20, ORIGINAL_ONLY, ORIGINAL, 20, False),
    (50, BOTH, ORIGINAL, 50, False),
    (50, LIGHTNING_ONLY, LIGHTNING, 8, True),
    (50, ORIGINAL_ONLY, ORIGINAL, 50, False),
]


@pytest.mark.parametrize(("asked", "on_disk", "checkpoint", "steps", "warned"), TABLE)
def test_steps_and_what_is_on_disk_choose_the_checkpoint(
    asked: int | None, on_disk: tuple[Checkpoint, ...], checkpoint: Checkpoint, steps: int, warned: bool
) -> None:
    chosen = planned(on_disk, steps=asked)
    assert (chosen.checkpoint, chosen.steps) == (checkpoint, steps)
    expected = f"steps {asked} was asked for, which no checkpoint on disk runs: "
    expected += f"the {checkpoint.name} checkpoint runs {steps} steps instead"
    assert chosen.warnings == ((expected,) if warned else ())


@pytest.mark.parametrize("on_disk", [BOTH, LIGHTNING_ONLY, ORIGINAL_ONLY])
def test_a_supported_step_count_runs_as_asked(on_disk: tuple[Checkpoint, ...]) -> None:
    for steps in supported_steps(on_disk):
        chosen = planned(on_disk, steps=steps)
        assert (chosen.steps, chosen.warnings) == (steps, ())


def test_supported_steps_are_those_of_what_is_on_disk() -> None:
    assert supported_steps(BOTH) == [8, *range(20, 51)]
    assert supported_steps(LIGHTNING_ONLY) == [8]
    assert supported_steps(ORIGINAL_ONLY) == list(range(20, 51))
    assert supported_steps(()) == []


def test_nothing_on_disk_is_model_unavailable() -> None:
    with pytest.raises(ModelUnavailable, match=r"MODEL_CACHE_DIR.*python -m builder bake"):
        planned(())


@pytest.mark.parametrize("rank", [64, 32])
def test_a_smaller_rank_runs_at_128_with_a_warning(rank: int) -> None:
    expected = f"rank {rank} was asked for, which is not served: rank 128 runs instead"
    assert planned(rank=rank).warnings == (expected,)


def test_rank_128_has_no_warning() -> None:
    assert planned(rank=128).warnings == ()


@pytest.mark.parametrize(("on_disk", "scale"), [(LIGHTNING_ONLY, 1.0), (ORIGINAL_ONLY, 4.0)])
def test_guidance_left_out_is_the_one_of_the_checkpoint(on_disk: tuple[Checkpoint, ...], scale: float) -> None:
    assert planned(on_disk).true_cfg_scale == scale


def test_guidance_with_lightning_is_done_with_a_warning() -> None:
    chosen = planned(LIGHTNING_ONLY, true_cfg_scale=2.5, negative_prompt="blurry")
    assert (chosen.true_cfg_scale, chosen.negative_prompt) == (2.5, "blurry")
    (warning,) = chosen.warnings
    assert warning.startswith("true_cfg_scale 2.5 was asked for and runs, but the lightning checkpoint")


def test_guidance_with_the_original_has_no_warning() -> None:
    chosen = planned(ORIGINAL_ONLY, true_cfg_scale=2.5, negative_prompt="blurry")
    assert (chosen.true_cfg_scale, chosen.negative_prompt, chosen.warnings) == (2.5, "blurry", ())


def test_guidance_without_a_negative_prompt_uses_the_default_one() -> None:
    assert planned(ORIGINAL_ONLY).negative_prompt == " "


@pytest.mark.parametrize(("on_disk", "fields"), [(LIGHTNING_ONLY, {}), (ORIGINAL_ONLY, {"true_cfg_scale": 1})])
def test_a_negative_prompt_is_not_used_without_guidance(
    on_disk: tuple[Checkpoint, ...], fields: dict[str, Any]
) -> None:
    assert planned(on_disk, **fields).negative_prompt is None
    assert planned(on_disk, **fields).warnings == ()
    chosen = planned(on_disk, negative_prompt="blurry", **fields)
    assert chosen.negative_prompt is None
    assert chosen.warnings == ("negative_prompt is not used: guidance is off at true_cfg_scale 1",)


def test_each_difference_has_its_own_warning() -> None:
    chosen = planned(LIGHTNING_ONLY, rank=64, steps=30, negative_prompt="blurry", width=500, height=500)
    assert [warning.split()[0] for warning in chosen.warnings] == ["rank", "steps", "negative_prompt", "500"]


def test_a_seed_is_kept() -> None:
    assert planned(seed=MAX_SEED).seed == MAX_SEED
    assert planned(seed=0).seed == 0


@pytest.mark.parametrize("fields", [{}, {"seed": -1}])
def test_a_seed_that_is_left_open_is_drawn_anew(fields: dict[str, Any]) -> None:
    seeds = {planned(**fields).seed for _ in range(64)}
    assert len(seeds) == 64
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert max(seeds) > 2**60


def test_the_number_of_pictures_is_kept() -> None:
    assert planned(num_images=3).num_images == 3


def test_sides_that_are_multiples_of_16_are_kept() -> None:
    chosen = planned(width=256, height=1040)
    assert (chosen.width, chosen.height, chosen.warnings) == (256, 1040, ())


def test_other_sides_are_rounded_to_16_with_a_warning() -> None:
    chosen = planned(width=1000, height=777)
    assert (chosen.width, chosen.height) == (992, 784)
    assert chosen.warnings == ("1000 × 777 was asked for: 992 × 784 runs instead, because sides are multiples of 16",)


@pytest.mark.parametrize("side", [256, 257, 2047, 2048])
def test_rounded_sides_stay_in_the_range_of_the_contract(side: int) -> None:
    chosen = planned(width=side, height=side)
    assert chosen.width == chosen.height == (256 if side < 300 else 2048)


def test_a_size_that_is_left_open_has_the_shape_of_the_picture() -> None:
    assert (planned(size=(640, 480)).width, planned(size=(640, 480)).height) == (1184, 896)
    assert planned(size=(640, 480)).warnings == ()


def test_the_open_size_is_the_one_that_the_pipeline_chooses() -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

    sides = [1, 2, 3, 5, 8, 13, 100, 427, 451, 512, 640, 683, 750, 1000, 1024, 1080, 1333, 1920, 3000, 4000, 8191]
    for width, height in itertools.product(sides, sides):
        if max(width, height) <= 8 * min(width, height):
            assert default_size((width, height)) == calculate_dimensions(1024 * 1024, width / height)[:2]
