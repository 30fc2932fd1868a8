"""The image's locks hold what a worker imports, and nothing is left out that nobody asks for."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, packages_distributions, requires
from pathlib import Path

import httpx2
import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from requirements.check import OVERRIDES, counts, overrides, unmet
from tests.repository.test_lock import pins
from tests.support.control_plane import ControlPlane
from tests.support.loop_worker import running
from tests.support.places import ROOT

PINNED = pins("serve.lock", "torch.lock")
FAKE = ("-m", "tests.support.fake_device")


INSTEAD = overrides(OVERRIDES.read_text())

ENGINE_ASKS_FOR = ("accelerate", "diffusers", "einops", "peft", "protobuf", "sentencepiece", "torchvision")
"""Requirements of nunchaku 1.2.1, which is not installed here: its `pyproject.toml`."""

TORCH_ASKS_FOR = ("nvidia-cudnn-cu12",)
"""Of torch 2.10's build for CUDA: the metadata of its wheel."""


def left_out() -> set[NormalizedName]:
    return {name for name, need in INSTEAD.items() if not counts(need)}


@pytest.fixture(scope="module")
def only_locked() -> dict[str, str]:
    """Variables of a program that finds no package but those that the locks pin."""
    hidden = [
        module
        for module, packages in packages_distributions().items()
        if not {canonicalize_name(package) for package in packages} & set(PINNED)
    ]
    folder = ROOT / "tests" / "support" / "only_locked"
    return {"PYTHONPATH": f"{folder}:{ROOT}", "QWEN_TEST_HIDDEN": ",".join(hidden)}


def test_a_worker_at_the_queue_needs_nothing_that_the_image_leaves_out(
    only_locked: dict[str, str], models: Path, tmp_path: Path, photo_base64: str
) -> None:
    job = {"image": photo_base64, "prompt": "make it snow", "width": 256, "height": 256}
    with ControlPlane() as plane, running(plane, models, tmp_path, **only_locked) as worker:
        plane.submit("job", job)
        result = plane.result("job")
        assert worker.terminate() == 0

    assert "output" in result
    assert worker.events("queue of the SDK") == []
    assert worker.events("imports not lean") == []


def test_the_local_server_of_the_sdk_needs_nothing_that_the_image_leaves_out(
    only_locked: dict[str, str], models: Path, photo_base64: str
) -> None:
    job = {"image": photo_base64, "prompt": "pace 0", "width": 256, "height": 256}
    with local_server({**only_locked, "MODEL_CACHE_DIR": str(models), "QWEN_EDIT_DEVICE": "cpu"}) as address:
        reply = httpx2.post(f"{address}/runsync", json={"input": job}, timeout=None).json()

    assert reply["status"] == "COMPLETED", reply


@contextmanager
def local_server(environ: dict[str, str]) -> Iterator[str]:
    """The address of `--rp_serve_api` at a free port, which it prints when it listens."""
    command = [sys.executable, *FAKE, "--rp_serve_api", "--rp_api_port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environ}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    try:
        printed = iter(process.stderr.readline, "")
        yield next(found[1] for line in printed if (found := re.search(r"running on (http://\S+)", line)))
    finally:
        process.kill()
        process.communicate()


def test_what_is_left_out_is_in_no_lock() -> None:
    assert left_out()
    assert left_out() & set(PINNED) == set()


@pytest.mark.parametrize("name", sorted(INSTEAD))
def test_what_takes_the_place_of_a_requirement_is_still_asked_for(name: str) -> None:
    lines = [line for package in ("diffusers", "runpod", "transformers") for line in requires(package) or []]
    asked = {canonicalize_name(need.name) for need in map(Requirement, lines) if counts(need)}
    assert name in asked | {*ENGINE_ASKS_FOR, *TORCH_ASKS_FOR}


def metadata(folder: Path, name: str, version: str, *needs: str) -> Distribution:
    """A package that is nothing but its metadata."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    (place / "METADATA").write_text("\n".join(lines) + "\n")
    return Distribution.at(place)


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        ("", ["requires needed>=2, and 1.5 is installed"]),
        ("needed>=1", []),
        ("needed>=1.6", ["requires needed>=1.6, and 1.5 is installed"]),
        ('needed>=1 ; python_version < "3"', []),
        ('needed>=3 ; python_version < "3"', ['requires needed>=3; python_version < "3", and 1.5 is installed']),
        ("# needed>=1", ["requires needed>=2, and 1.5 is installed"]),
    ],
)
def test_an_override_takes_the_place_of_a_requirement(tmp_path: Path, instead: str, said: list[str]) -> None:
    packages = [metadata(tmp_path, "asks", "1.0", "needed>=2"), metadata(tmp_path, "needed", "1.5")]
    assert list(unmet(packages, overrides(instead))) == [f"asks 1.0 {sentence}" for sentence in said]


@pytest.mark.parametrize("instead", ["", "needed>=1"])
def test_a_requirement_that_is_missing_is_told(tmp_path: Path, instead: str) -> None:
    asked = ("needed>=1", "extra ; extra == 'more'", "fits[any]<3")
    packages = [metadata(tmp_path, "asks", "1.0", *asked), metadata(tmp_path, "fits", "2.0rc1")]
    assert list(unmet(packages, overrides(instead))) == ["asks 1.0 requires needed>=1, which is not installed"]


def test_what_is_left_out_may_be_missing(tmp_path: Path) -> None:
    packages = [metadata(tmp_path, "asks", "1.0", "Left.Out>=1")]
    assert list(unmet(packages, overrides('left_out ; python_version < "3"'))) == []
