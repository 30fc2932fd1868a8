import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from builder.made.publish import publishing
from qwen_edit import Editor
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import LIGHTNING_SCHEDULE
from tests.support.places import PHOTOS
from tests.training.test_quality import edited
from training.edits import EDITS, sentences
from training.objectives import GUIDANCE, LIGHTNING_SIGMAS, ORIGINAL
from training.photos import HELD_OUT, TRAINING, read
from training.train import Effort, train

TOY = Effort(vae_steps=3, vae_batch=2, pictures=4, sentences=2, lightning_steps=30, original_steps=2, batch=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A model of a few steps, what its stages left, and what they said."""
    models, work = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("work")
    lines: list[str] = []
    with publishing(models, "demo", "toy") as folder:
        train(folder, work, [read(PHOTOS / "chelsea.png")], TOY, lines.append)
    return models, work, lines


def test_a_few_steps_reduce_the_loss(trained: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    _, work, lines = trained
    (whole,) = [float(line.split()[-1]) for line in lines if line.startswith("lightning")]
    short: list[str] = []
    (tmp_path / "vae.pt").write_bytes((work / "vae.pt").read_bytes())

    train(
        tmp_path / "models",
        tmp_path,
        [read(PHOTOS / "chelsea.png")],
        replace(TOY, lightning_steps=2),
        short.append,
    )

    (start,) = [float(line.split()[-1]) for line in short if line.startswith("lightning")]
    assert whole < start


def test_what_training_writes_is_served(trained: tuple[Path, Path, list[str]], photo: Image.Image) -> None:
    picture = edited(Editor.load(Settings(models=trained[0], device="cpu")), photo, "invert the colors")

    assert picture.size == (352, 256)


def test_a_stage_that_is_done_is_not_done_again(trained: tuple[Path, Path, list[str]]) -> None:
    models, work, _ = trained
    again: list[str] = []

    train(models, work, [read(PHOTOS / "chelsea.png")], TOY, again.append)

    assert not [line for line in again if line.startswith(("vae", "lightning", "original"))]


def test_what_is_held_out_is_not_trained_on() -> None:
    assert not set(HELD_OUT) & set(TRAINING)
    for edit in EDITS.values():
        assert not set(edit.held_out) & set(sentences(edit))


def test_guidance_turns_the_predictions_of_the_original_into_the_velocity() -> None:
    noise, target, reference = torch.randn(3, 2, 5, 64, generator=torch.Generator().manual_seed(0))
    noisy = torch.lerp(target, noise, 0.7)

    with_prompt = ORIGINAL.velocity(noisy, noise, target, reference, torch.tensor([False, False]))
    without = ORIGINAL.velocity(noisy, noise, target, reference, torch.tensor([True, True]))

    guided = without + GUIDANCE * (with_prompt - without)
    guided *= with_prompt.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(guided, noise - target)


def test_lightning_trains_at_the_noise_levels_of_its_schedule() -> None:
    shift = math.exp(float(str(LIGHTNING_SCHEDULE["max_shift"])))
    uniform = torch.arange(8, 0, -1) / 8

    torch.testing.assert_close(LIGHTNING_SIGMAS, shift * uniform / (1 + (shift - 1) * uniform))
