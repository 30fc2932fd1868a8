import shutil
from pathlib import Path

import pytest

from builder.bake import record
from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.catalog import BASE_FOLDER
from qwen_edit.store.folder import base_weights, broken_promises
from qwen_edit.store.manifest import Entry, Manifest

SHARD = "text_encoder/model-00002-of-00002.safetensors"


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models, tmp_path / "models"))


def test_the_weights_of_the_base_model_are_listed_in_the_order_of_their_use(models: Path) -> None:
    assert [path.relative_to(models / BASE_FOLDER).as_posix() for path in base_weights(models)] == [
        "text_encoder/model-00001-of-00002.safetensors",
        SHARD,
        "vae/diffusion_pytorch_model.safetensors",
    ]


@pytest.mark.parametrize("name", [SHARD, "tokenizer/vocab.json", "tokenizer/merges.txt", "vae/config.json"])
def test_a_file_that_a_load_would_miss_is_named_before(copy: Path, name: str) -> None:
    (copy / BASE_FOLDER / name).unlink()

    with pytest.raises(ModelUnavailable, match=f"the base model has no {name} in MODEL_CACHE_DIR; fetch it with"):
        base_weights(copy)


@pytest.mark.parametrize(
    ("source", "command"), [("tiny", "tiny"), ("demo", "demo"), ("Qwen/Qwen-Image-Edit", "bake"), ("bake it", "bake")]
)
def test_a_broken_promise_names_the_command_of_its_source(tmp_path: Path, source: str, command: str) -> None:
    manifest = Manifest((Entry("gone", 3, "0" * 64, source, "1"),))
    record.write(tmp_path, manifest)

    ((_, sentence),) = broken_promises(tmp_path, manifest)

    assert sentence == f"gone is missing, the manifest promises 3 bytes; run python -m builder {command}"
