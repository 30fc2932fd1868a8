from collections.abc import Callable, Iterator

import pytest
import torch
from PIL import Image
from torch import Tensor

from qwen_edit import Editor
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.store.catalog import LIGHTNING, ORIGINAL

SIDE = 64


@pytest.fixture
def pipeline(editor: Editor) -> EditPipeline:
    """With nothing kept."""
    editor._pipeline.contents.clear()
    return editor._pipeline


@pytest.fixture
def runs(pipeline: EditPipeline) -> Iterator[Callable[[], tuple[int, int]]]:
    """How often the text encoder and the VAE's encoder have run since this was last asked."""
    calls: list[object] = []

    def taken() -> tuple[int, int]:
        counts = calls.count(pipeline.text_encoder), calls.count(pipeline.vae.encoder)
        calls.clear()
        return counts

    ends = [
        encoder.register_forward_pre_hook(lambda module, _args: calls.append(module)).remove
        for encoder in (pipeline.text_encoder, pipeline.vae.encoder)
    ]
    yield taken
    for end in ends:
        end()


@pytest.fixture
def picture(photo: Image.Image) -> Image.Image:
    return photo.resize((SIDE, SIDE))


@torch.inference_mode()
def encode(pipeline: EditPipeline, picture: Image.Image, *prompts: str) -> list[Tensor]:
    """The embeddings of each prompt and the reference's latents, in the order in which the stock pipeline asks."""
    device = torch.device("cpu")
    embeddings = [pipeline.encode_prompt(prompt, image=picture, device=device)[0] for prompt in prompts]
    pixels = pipeline.image_processor.preprocess(picture, SIDE, SIDE).unsqueeze(2)
    _, latents = pipeline.prepare_latents(
        pixels, 1, 16, SIDE, SIDE, torch.float32, device, [torch.Generator().manual_seed(0)]
    )
    return [*embeddings, latents]


def test_the_same_picture_and_prompts_are_encoded_once_to_the_same_bits(pipeline, runs, picture) -> None:
    first = encode(pipeline, picture, "snow", "rain")
    assert runs() == (2, 1)

    again = encode(pipeline, picture.copy(), "snow", "rain")

    assert runs() == (0, 0)
    assert all(map(torch.equal, first, again))


def test_another_prompt_asks_the_text_encoder_alone(pipeline, runs, picture) -> None:
    encode(pipeline, picture, "snow")
    runs()

    kept = encode(pipeline, picture, "rain")
    assert runs() == (1, 0)

    pipeline.contents.clear()
    assert all(map(torch.equal, kept, encode(pipeline, picture, "rain")))


def test_a_picture_that_differs_in_one_pixel_is_encoded_anew(pipeline, runs, picture) -> None:
    first = encode(pipeline, picture, "snow")
    runs()
    picture.putpixel((7, 7), (255, 0, 255))

    other = encode(pipeline, picture, "snow")

    assert runs() == (1, 1)
    assert not any(map(torch.equal, first, other))


def test_what_was_encoded_outlives_a_change_of_the_checkpoint(editor, pipeline, runs, picture) -> None:
    editor._change_to(LIGHTNING)
    first = encode(pipeline, picture, "snow")
    runs()

    editor._change_to(ORIGINAL)

    assert all(map(torch.equal, first, encode(pipeline, picture, "snow")))
    assert runs() == (0, 0)


def test_the_latents_of_tiles_are_not_taken_for_those_of_the_whole(pipeline, runs, picture) -> None:
    encode(pipeline, picture, "snow")
    runs()

    pipeline.vae.enable_tiling()
    encode(pipeline, picture, "snow")
    pipeline.vae.disable_tiling()

    assert runs() == (0, 1)


def test_a_picture_that_no_prompt_was_encoded_for_is_not_kept(pipeline, runs, picture) -> None:
    encode(pipeline, picture, "snow")
    encode(pipeline, picture)
    encode(pipeline, picture)

    assert runs() == (1, 3)


def test_no_edit_writes_into_what_is_kept(pipeline, picture) -> None:
    with torch.inference_mode():
        for tensor in encode(pipeline, picture, "snow"):
            tensor.zero_()

    again = encode(pipeline, picture, "snow")

    assert all(tensor.any() for tensor in again)
