import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwen_edit.errors import ModelUnavailable
from qwen_edit.weights import read_folder

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    save_file({"a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)}, folder / "part-1.safetensors")
    save_file({"b": torch.tensor([3], dtype=torch.int64)}, folder / "part-2.safetensors")
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_the_shards_of_an_index_are_read_together(folder: Path) -> None:
    tensors = read_folder(folder, CPU, torch.float32)

    assert tensors["a"].tolist() == [1.0, 2.0]
    assert tensors["b"].tolist() == [3]


def test_floating_point_tensors_take_the_asked_dtype_and_integers_keep_theirs(folder: Path) -> None:
    tensors = read_folder(folder, CPU, torch.float32)

    assert tensors["a"].dtype == torch.float32
    assert tensors["b"].dtype == torch.int64


def test_a_file_that_the_index_does_not_name_is_left_alone(folder: Path) -> None:
    save_file({"old": torch.zeros(1)}, folder / "stale.safetensors")

    assert set(read_folder(folder, CPU, torch.float32)) == {"a", "b"}


def test_without_an_index_the_only_file_is_read(tmp_path: Path) -> None:
    save_file({"c": torch.zeros(2)}, tmp_path / "diffusion_pytorch_model.safetensors")

    assert set(read_folder(tmp_path, CPU, torch.float32)) == {"c"}


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "part-2.safetensors").unlink()

    with pytest.raises(ModelUnavailable, match=r"text_encoder/part-2\.safetensors is missing"):
        read_folder(folder, CPU, torch.float32)


def test_a_truncated_shard_is_named(folder: Path) -> None:
    shard = folder / "part-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])

    with pytest.raises(ModelUnavailable, match=r"text_encoder/part-1\.safetensors is damaged"):
        read_folder(folder, CPU, torch.float32)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 7}', "{"])
def test_an_index_that_is_none_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)

    with pytest.raises(ModelUnavailable, match=r"text_encoder/model\.safetensors\.index\.json is not an index"):
        read_folder(folder, CPU, torch.float32)


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="python -m builder bake"):
        read_folder(tmp_path, CPU, torch.float32)
