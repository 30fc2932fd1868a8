import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

from qwen_edit import Editor
from qwen_edit.errors import ModelUnavailable
from qwen_edit.model.text_encoder import load_text_encoder
from qwen_edit.store.catalog import BASE_FOLDER
from tests.support.reading import read_folder

CPU = torch.device("cpu")


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A text encoder that may be changed."""
    return Path(shutil.copytree(models / BASE_FOLDER / "text_encoder", tmp_path / "text_encoder"))


@pytest.fixture
def inputs(editor: Editor, photo: Image.Image) -> dict[str, Tensor]:
    return editor.pipeline.prompts.inputs("make it snow", photo)._asdict()


def load(folder: Path) -> Qwen2_5_VLModel:
    return load_text_encoder(folder, read_folder(folder, CPU, torch.float32))


def hidden_states(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        states: tuple[Tensor, ...] = model(**inputs, output_hidden_states=True).hidden_states
    return states[-1]


def full_model(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """transformers' own model with `lm_head`, loaded by transformers alone."""
    tensors: dict[str, Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= {name: tensor.float() for name, tensor in load_file(shard).items()}
    today = {
        name.replace("visual.", "model.visual.", 1)
        if name.startswith("visual.")
        else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in tensors.items()
    }
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder)).eval()
    model.load_state_dict(today)
    return model


def test_hidden_states_are_those_of_the_full_model(folder: Path, inputs: dict[str, Tensor]) -> None:
    ours = load(folder)
    full = full_model(folder)
    token_types = (inputs["input_ids"] == full.config.image_token_id).int()

    expected = hidden_states(full, {**inputs, "mm_token_type_ids": token_types})

    torch.testing.assert_close(hidden_states(ours, inputs), expected)


def test_the_pictures_tokens_have_three_dimensional_positions(folder: Path, inputs: dict[str, Tensor]) -> None:
    ours = load(folder)
    seen: list[Tensor] = []
    ours.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )

    with torch.inference_mode():
        ours(**inputs)

    (positions,) = seen  # [3, 1, tokens]: time, row, column
    picture = positions[:, 0, inputs["input_ids"][0] == ours.config.image_token_id]
    _, rows, columns = (inputs["image_grid_thw"][0] // torch.tensor([1, 2, 2])).tolist()
    assert picture[0].unique().numel() == 1
    assert picture[1].unique().numel() == rows
    assert picture[2].unique().numel() == columns


def test_a_plain_call_with_positional_arguments_has_them_too(folder: Path, inputs: dict[str, Tensor]) -> None:
    ours = load(folder)
    names = ("input_ids", "attention_mask")
    rest = {name: tensor for name, tensor in inputs.items() if name not in names}

    with torch.inference_mode():
        positional = ours(*(inputs[name] for name in names), **rest).last_hidden_state
        assert torch.equal(positional, ours(**inputs).last_hidden_state)


def test_lm_head_is_left_out(folder: Path) -> None:
    model = load(folder)

    assert not [name for name, _ in model.named_parameters() if "lm_head" in name]


def test_the_names_of_today_load_as_the_published_ones_do(folder: Path, inputs: dict[str, Tensor]) -> None:
    published = hidden_states(load(folder), inputs)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        save_file({today_name(name): tensor for name, tensor in tensors.items()}, shard)

    today = hidden_states(load(folder), inputs)

    assert torch.equal(today, published)


def today_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def test_a_missing_tensor_is_an_error_and_not_a_random_one(folder: Path) -> None:
    shard = next(iter(sorted(folder.glob("*.safetensors"))))
    tensors = load_file(shard)
    del tensors["model.norm.weight"]
    save_file(tensors, shard)

    with pytest.raises(ModelUnavailable, match=r"language_model\.norm\.weight"):
        load(folder)


def test_a_configuration_of_another_size_is_an_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelUnavailable, match="no such tensor"):
        load(folder)
