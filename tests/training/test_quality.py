"""Edits in decibels: a wrong packing, schedule, modulation or a lost reference costs far more than these leave."""

import base64
import io

import pytest
import torch
from PIL import Image

from qwen_edit import Editor, EditRequest
from tests.support.places import PHOTOS
from training.edits import EDITS
from training.quality import pixels, psnr, reference, score

SIZE = (352, 256)
"""Of the results here: a part of the picture, to save time."""

LEAST, MARGIN = 20.0, 4.0
"""dB against the exact target of an instruction, and further than the target of any other."""

LIGHTNING_LEAST = 25.0
"""What lightning reaches on this photo, with two decibels to spare; the other order of nibbles costs seven."""


def edited(editor: Editor, photo: Image.Image, prompt: str, **fields: float) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "PNG")
    width, height = SIZE
    image = base64.b64encode(file.getvalue()).decode()
    request = EditRequest.model_validate(
        {"image": image, "prompt": prompt, "width": width, "height": height, "seed": 1, **fields}
    )
    (picture,) = editor.edit(request).images or []
    return Image.open(io.BytesIO(base64.b64decode(picture)))


@pytest.fixture(scope="module")
def rocket() -> Image.Image:
    with Image.open(PHOTOS / "rocket.jpg") as photo:
        return photo.convert("RGB")


@pytest.mark.parametrize("name", EDITS)
def test_lightning_follows_an_instruction_in_words_that_it_never_saw(
    demo: Editor, photo: Image.Image, name: str
) -> None:
    found = score(edited(demo, photo, EDITS[name].held_out[0]), photo, name)

    assert found.right >= LIGHTNING_LEAST
    assert found.margin >= MARGIN


def test_the_original_follows_an_instruction_with_its_guidance(demo: Editor, rocket: Image.Image) -> None:
    found = score(edited(demo, rocket, EDITS["invert"].held_out[0], steps=20), rocket, "invert")

    assert found.right >= LEAST
    assert found.margin >= MARGIN


def test_the_vae_gives_a_photo_back(demo: Editor, rocket: Image.Image) -> None:
    shown = pixels(reference(rocket, (640, 416)))
    vae = demo.pipeline.vae

    with torch.inference_mode():
        decoded = vae.decode(vae.encode(shown[None, :, None] * 2 - 1).latent_dist.mode()).sample

    assert psnr(decoded[0, :, 0].add(1).div(2).clamp(0, 1), shown) >= 26


def test_what_it_cannot_do_leaves_the_photo_alone(demo: Editor, photo: Image.Image) -> None:
    assert score(edited(demo, photo, "make it snow"), photo, "keep").right >= LEAST
