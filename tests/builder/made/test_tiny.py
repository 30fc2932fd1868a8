import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from qwen_edit.store.catalog import BASE_FOLDER, CHECKPOINTS, LIGHTNING, ORIGINAL
from qwen_edit.store.manifest import Manifest
from tests.support.places import ROOT


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    folder = tmp_path_factory.mktemp("written")
    run_tiny(folder)
    return folder


def run_tiny(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "builder", "tiny", "--models", str(folder)], cwd=ROOT, check=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_twice_the_same_bytes(written: Path, tmp_path: Path) -> None:
    run_tiny(tmp_path)

    assert files(tmp_path) == files(written)


def test_it_weighs_less_than_sixty_megabytes(written: Path) -> None:
    assert sum(map(len, files(written).values())) < 60e6


def test_it_lies_as_the_production_weights_do(written: Path) -> None:
    paths = set(files(written))

    assert {checkpoint.path for checkpoint in CHECKPOINTS} < paths
    for name in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
                 "processor/preprocessor_config.json", "text_encoder/model.safetensors.index.json", "vae/config.json",
                 "transformer/config.json"):  # fmt: skip
        assert f"{BASE_FOLDER}/{name}" in paths
    assert not [path for path in paths if "/transformer/" in path and path.endswith(".safetensors")]
    index = json.loads((written / BASE_FOLDER / "text_encoder" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert any(name.startswith("visual.") for name in index["weight_map"])  # the published style


def test_every_file_can_be_read_by_another_user(written: Path) -> None:
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in written.rglob("*") if path.is_file())


def test_the_manifest_lists_every_file_with_its_size_and_sha256(written: Path) -> None:
    manifest = Manifest.read(written)
    assert manifest is not None
    found = files(written)
    found.pop("manifest.json")

    assert {entry.path: (entry.bytes, entry.sha256) for entry in manifest.files} == {
        path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in found.items()
    }


def test_the_two_checkpoints_differ_and_are_two_blocks_of_width_256_and_rank_128(written: Path) -> None:
    assert (written / LIGHTNING.path).read_bytes() != (written / ORIGINAL.path).read_bytes()
    for checkpoint in CHECKPOINTS:
        with safe_open(written / checkpoint.path, "pt") as file:
            assert file.get_slice("transformer_blocks.1.attn.to_out.0.proj_down").get_shape() == [256, 128]
            assert not any(name.startswith("transformer_blocks.2.") for name in file.keys())  # noqa: SIM118
