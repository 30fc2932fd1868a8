import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.loading.imports.starts import AUTOENCODER, STARTS
from tests.support.places import PHOTOS, ROOT

PARTS = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp")
AS_IT_IS = ("in_the_ordinary_way", "lean")

Start = dict[str, Any]


@pytest.fixture(scope="module")
def starts(models: Path) -> dict[str, Start]:
    program = [sys.executable, "-m", "tests.loading.imports.starts", str(models), str(PHOTOS / "chelsea.png")]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    given: dict[str, Start] = json.loads(done.stdout)
    return given


@pytest.mark.parametrize("name", [name for name in STARTS if name not in AS_IT_IS])
def test_a_start_serves_in_the_ordinary_way_and_says_so_once(name: str, starts: dict[str, Start]) -> None:
    start = starts[name]
    assert "failure" not in start, start["failure"]
    assert start["picture"] == starts["in_the_ordinary_way"]["picture"]
    assert [(line["event"], line["level"]) for line in start["log"]] == [("imports not lean", "warning")]
    assert ": " in start["log"][0]["error"]


@pytest.mark.parametrize("name", AS_IT_IS)
def test_a_start_with_the_packages_as_they_are_says_nothing(name: str, starts: dict[str, Start]) -> None:
    assert "failure" not in starts[name], starts[name]["failure"]
    assert starts[name]["log"] == []
    assert starts[name]["picture"] == starts["in_the_ordinary_way"]["picture"]


def test_an_edit_reads_no_model_but_its_own(starts: dict[str, Start]) -> None:
    autoencoders = [name for name in starts["lean"]["modules"] if "diffusers.models.autoencoders.autoencoder_" in name]

    assert starts["lean"]["families"] == ["auto", "encoder_decoder", "qwen2", "qwen2_5_vl", "qwen2_vl"]
    assert autoencoders == [AUTOENCODER]


def test_an_edit_needs_neither_the_compiler_nor_the_distributed_parts_of_torch(starts: dict[str, Start]) -> None:
    assert set(PARTS).isdisjoint(starts["lean"]["modules"])


def test_the_setting_leaves_the_imports_as_they_are(starts: dict[str, Start]) -> None:
    ordinary = starts["in_the_ordinary_way"]
    assert set(PARTS) & set(ordinary["modules"])
    assert len(ordinary["families"]) > 100
