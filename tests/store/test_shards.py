import json
from pathlib import Path

import pytest

from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.shards import read_index, shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    return folder


def names(folder: Path) -> list[str]:
    return [path.name for path in shards(folder)]


def index(folder: Path, document: object, name: str = "model.safetensors.index.json") -> Path:
    (folder / name).write_text(json.dumps(document))
    return folder / name


def test_the_published_layouts_are_understood(folder: Path) -> None:
    sharded = [f"model-{number:05}-of-00004.safetensors" for number in (1, 2, 3, 4)]
    index(folder, {"metadata": {}, "weight_map": {str(i): name for i, name in enumerate(reversed(sharded))}})
    vae = folder.parent / "vae"
    vae.mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (vae / name).touch()

    assert names(folder) == sharded
    assert names(vae) == ["diffusion_pytorch_model.safetensors"]


def test_an_index_gives_the_shard_of_each_tensor(folder: Path) -> None:
    path = index(folder, {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})

    assert read_index(path) == {"a": "1.safetensors", "b": "2.safetensors"}


def test_several_files_without_an_index_are_refused_with_their_names(folder: Path) -> None:
    for name in ("b.safetensors", "a.safetensors"):
        (folder / name).touch()

    expected = r"text_encoder has several \.safetensors files and nothing that .*: a\.safetensors, b\.safetensors$"
    with pytest.raises(ModelUnavailable, match=expected):
        shards(folder)


def test_several_indexes_are_refused_with_their_names(folder: Path) -> None:
    for name in ("model.fp16.safetensors.index.json", "model.safetensors.index.json"):
        index(folder, {"weight_map": {"a": "a.safetensors"}}, name)

    with pytest.raises(ModelUnavailable, match=r"several .* files .*: model\.fp16\.safetensors\.index\.json, model"):
        shards(folder)


@pytest.mark.parametrize(
    "document",
    [
        {"weight_map": {"a": "a.safetensors", "b": 7}},
        {"weight_map": {"a": "a.safetensors", "b": None}},
        {"weight_map": {"a": ["a.safetensors"]}},
        {"weight_map": {"a": "../vae/a.safetensors"}},
        {"weight_map": {"a": "/a.safetensors"}},
        {"weight_map": {"a": "a\0.safetensors"}},
        {"weight_map": {"a": "\ud800.safetensors"}},
        {"weight_map": {"a": "config.json"}},
        {"weight_map": {}},
        {"weight_map": ["a.safetensors"]},
        {"weight_map": "a.safetensors"},
    ],
)
def test_an_index_of_anything_but_files_beside_it_is_refused(folder: Path, document: object) -> None:
    index(folder, document)

    expected = r"^model_unavailable: text_encoder/model\.safetensors\.index\.json is not an index of shards, expected a"
    with pytest.raises(ModelUnavailable, match=expected):
        shards(folder)


def test_an_index_nested_without_end_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)

    with pytest.raises(ModelUnavailable, match="is not an index of shards"):
        shards(folder)
