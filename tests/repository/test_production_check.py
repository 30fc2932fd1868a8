import re
from importlib.util import find_spec

import pytest

from deploy.production_check import COMPILING, MODULES, TESTS, installs
from tests.support.places import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def test_it_installs_the_locks_as_the_dockerfile_does() -> None:
    assert list(installs(DOCKERFILE)) == [
        "install --no-compile --no-deps --require-hashes -r requirements/torch.lock",
        "install --no-compile --no-deps --require-hashes -r requirements/serve.lock",
    ]


@pytest.mark.parametrize("lock", ["torch", "serve"])
def test_a_lock_that_the_dockerfile_does_not_install_is_not_passed_over(lock: str) -> None:
    without = re.sub(rf"-r requirements/{lock}.lock", "", DOCKERFILE)

    with pytest.raises(ValueError, match=r"expected torch\.lock, then serve\.lock"):
        list(installs(without))


@pytest.mark.parametrize("module", MODULES)
def test_what_it_imports_is_there(module: str) -> None:
    assert find_spec(module) is not None


def test_what_it_tests_is_there() -> None:
    assert all(list((ROOT / folder).glob("test_*.py")) for folder in TESTS)
    assert all((ROOT / file).is_file() for file in COMPILING)
