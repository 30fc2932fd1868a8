import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.places import ROOT

ROOM = ROOT / "requirements"
LOCKS = ("bake.lock", "serve.lock", "torch.lock")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def entries(lock: str) -> list[str]:
    """The lines of a lock that pin something, each joined with the hashes that follow it."""
    text = (ROOM / lock).read_text().replace("\\\n", "")
    return [line for line in text.splitlines() if not line.startswith("#")]


def pins(*locks: str) -> dict[str, Version]:
    """Name → version of everything in the locks."""
    pairs = [re.match(r"(\S+)==(\S+)", entry) for lock in locks for entry in entries(lock)]
    return {canonicalize_name(pair[1]): Version(pair[2]) for pair in pairs if pair}


def wanted(source: str) -> list[Requirement]:
    """The requirements that an .in file lists."""
    return [Requirement(line) for line in (ROOM / source).read_text().splitlines() if not line.startswith("#")]


def unmet(requirements: list[Requirement], pinned: dict[str, Version]) -> list[str]:
    return [
        str(need)
        for need in requirements
        if (version := pinned.get(canonicalize_name(need.name))) is None or version not in need.specifier
    ]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_the_sha256_of_a_file(lock: str) -> None:
    assert entries(lock)
    for entry in entries(lock):
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+(\s+--hash=sha256:[0-9a-f]{64})+", entry), entry


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_place_to_download_from(lock: str) -> None:
    assert "://" not in (ROOM / lock).read_text()


def test_the_image_gets_a_version_of_every_dependency_that_the_project_allows() -> None:
    needs = [Requirement(line) for line in PYPROJECT["dependencies"]]
    assert unmet(needs, pins("serve.lock", "torch.lock")) == []


def test_the_image_gets_what_the_engine_asks_for() -> None:
    assert unmet(wanted("engine.in"), pins("serve.lock", "torch.lock")) == []


def test_the_weight_layers_get_what_baking_asks_for() -> None:
    assert unmet(wanted("bake.in"), pins("bake.lock")) == []


def test_baking_uses_versions_that_the_project_allows() -> None:
    pinned = pins("bake.lock")
    needs = [Requirement(line) for line in PYPROJECT["dependencies"]]
    assert unmet([need for need in needs if canonicalize_name(need.name) in pinned], pinned) == []


def test_torch_is_the_version_and_the_cuda_that_the_engine_was_built_for() -> None:
    built = re.search(r"\+cu(\d+)\.(\d+)torch(\d+\.\d+)-", PYPROJECT["optional-dependencies"]["nunchaku"][0])
    assert built
    pinned = pins("torch.lock")
    assert pinned["torch"].release[:2] == Version(built[3]).release
    assert pinned[f"nvidia-cuda-runtime-cu{built[1]}"].release[:2] == (int(built[1]), int(built[2]))
