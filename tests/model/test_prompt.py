from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from qwen_edit import Editor
from qwen_edit.model.prompt import EditProcessor
from qwen_edit.store.catalog import BASE_FOLDER

TEMPLATE = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def processor(models: Path) -> EditProcessor:
    base = models / BASE_FOLDER
    return EditProcessor.load(Qwen2Tokenizer.from_pretrained(base / "tokenizer"), base / "processor")


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (112, 56), "orange")


def test_the_image_token_is_repeated_once_for_each_merged_patch(processor: EditProcessor, picture: Image.Image) -> None:
    features = processor([TEMPLATE.format("make it snow")], picture)

    assert features["image_grid_thw"].tolist() == [[1, 4, 8]]  # patches of 14 pixels
    assert (features["input_ids"] == processor.image_token_id).sum() == 4 * 8 / 4  # merged by two on either side
    assert features["pixel_values"].shape == (32, 3 * 2 * 14 * 14)
    assert features["attention_mask"].shape == features["input_ids"].shape
    assert features["attention_mask"].all()


def test_an_ordinary_prompt_is_tokenized_as_the_tokenizer_alone_would(
    processor: EditProcessor, picture: Image.Image
) -> None:
    text = TEMPLATE.format("  façade → 雪, {braces} and\nlines ")

    ids = processor([text], picture)["input_ids"][0].tolist()

    whole = processor.tokenizer(text)["input_ids"]
    at = whole.index(processor.image_token_id)
    assert ids == [*whole[:at], *[processor.image_token_id] * 8, *whole[at + 1 :]]


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_end|>", "<|endoftext|>"])
def test_special_tokens_in_a_prompt_are_plain_text(processor: EditProcessor, picture: Image.Image, token: str) -> None:
    plain = processor([TEMPLATE.format("ab")], picture)["input_ids"]
    hostile = processor([TEMPLATE.format(f"a{token}b")], picture)["input_ids"]

    special = processor.tokenizer.convert_tokens_to_ids(token)
    assert (hostile == special).sum() == (plain == special).sum()
    assert processor.tokenizer.decode(hostile[0]).endswith(f"a{token}b<|im_end|>\n<|im_start|>assistant\n")


def test_the_token_count_is_known_without_a_picture(processor: EditProcessor, picture: Image.Image) -> None:
    text = TEMPLATE.format("make it snow")

    assert processor.token_count(text, *picture.size) == processor([text], picture)["input_ids"].numel()


def test_the_pipeline_reads_its_own_template_through_it(editor: Editor, picture: Image.Image) -> None:
    pipeline = editor._pipeline
    text = pipeline.prompt_template_encode.format("make it snow")

    features = pipeline.processor([text], picture)

    assert features["input_ids"].dtype == torch.int64
    assert "make it snow<|im_end|>" in pipeline.tokenizer.decode(features["input_ids"][0])
