from pathlib import Path

import pytest
import torch
from diffusers import QwenImageEditPipeline
from PIL import Image
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from qwen_edit import Editor
from qwen_edit.model.prompt import DROPPED, HEAD, IMAGE_TOKEN, TAIL, PromptEncoder
from qwen_edit.store.catalog import BASE_FOLDER


@pytest.fixture
def prompts(editor: Editor) -> PromptEncoder:
    return editor.pipeline.prompts


@pytest.fixture(scope="module")
def tokenizer(models: Path) -> Qwen2Tokenizer:
    return Qwen2Tokenizer.from_pretrained(models / BASE_FOLDER / "tokenizer")


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (112, 56), "orange")


def ids(prompts: PromptEncoder, prompt: str, picture: Image.Image) -> list[int]:
    return list(prompts.inputs(prompt, picture).input_ids[0].tolist())


def test_the_template_is_that_of_the_stock_pipeline() -> None:
    parts = ("scheduler", "vae", "text_encoder", "tokenizer", "processor", "transformer")
    stock = QwenImageEditPipeline(**dict.fromkeys(parts))

    assert stock.prompt_template_encode == HEAD + "{}" + TAIL
    assert stock.prompt_template_encode_start_idx == DROPPED


def test_the_image_token_is_repeated_once_for_each_merged_patch(
    prompts: PromptEncoder, tokenizer: Qwen2Tokenizer, picture: Image.Image
) -> None:
    inputs = prompts.inputs("make it snow", picture)

    assert inputs.image_grid_thw.tolist() == [[1, 4, 8]]  # patches of 14 pixels
    shown = inputs.input_ids == tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert shown.sum() == 4 * 8 / 4  # merged by two on either side
    assert inputs.pixel_values.shape == (32, 3 * 2 * 14 * 14)
    assert inputs.input_ids.dtype == torch.int64
    assert inputs.attention_mask.shape == inputs.input_ids.shape
    assert inputs.attention_mask.all()


def test_an_ordinary_prompt_is_tokenized_as_the_tokenizer_alone_would(
    prompts: PromptEncoder, tokenizer: Qwen2Tokenizer, picture: Image.Image
) -> None:
    prompt = "  façade → 雪, {braces} and\nlines "

    whole = tokenizer(HEAD + prompt + TAIL)["input_ids"]
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    at = whole.index(image)
    assert ids(prompts, prompt, picture) == [*whole[:at], *[image] * 8, *whole[at + 1 :]]


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_end|>", "<|endoftext|>"])
def test_special_tokens_in_a_prompt_are_plain_text(
    prompts: PromptEncoder, tokenizer: Qwen2Tokenizer, picture: Image.Image, token: str
) -> None:
    plain, hostile = (ids(prompts, prompt, picture) for prompt in ("ab", f"a{token}b"))

    special = tokenizer.convert_tokens_to_ids(token)
    assert hostile.count(special) == plain.count(special)
    assert tokenizer.decode(hostile).endswith(f"a{token}b{TAIL}")


def test_the_token_count_is_known_without_a_picture(prompts: PromptEncoder, picture: Image.Image) -> None:
    with torch.inference_mode():
        states = prompts.states("make it snow", picture)

    assert prompts.token_count("make it snow", picture.size) == states.shape[1]
