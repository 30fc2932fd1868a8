import importlib.util
import subprocess
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FunctionType

import pytest

from qwen_edit.loading.imports.absent import ABSENT, ASKING, without_packages
from tests.support.places import ROOT

PROGRAM = """
import sys
from qwen_edit.loading.imports.lean import lean_imports
with lean_imports("qwen_edit.loading.assembly", enabled=sys.argv[1] == "lean", compiled=False):
    pass
print(*sorted({name.split(".")[0] for name in sys.modules} & {"accelerate", "peft", "torchvision"}))
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with all of `ABSENT` in it, of a version that pleases everybody."""
    for name in ABSENT:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("__version__ = '99.0'\n")
        metadata = tmp_path / f"{name}-99.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
    return tmp_path


def imported(way: str, installed: Path) -> "subprocess.CompletedProcess[str]":
    environ = {"PYTHONPATH": f"{installed}:{ROOT}", "PATH": "/usr/bin"}
    command = [sys.executable, "-c", PROGRAM, way]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def test_a_lean_start_imports_none_of_the_packages_that_no_edit_uses(installed: Path) -> None:
    lean = imported("lean", installed)
    assert (lean.returncode, lean.stdout) == (0, "\n"), lean.stderr


def test_an_ordinary_import_would_take_them(installed: Path) -> None:
    ordinary = imported("ordinary", installed)
    # These hold nothing of what diffusers and transformers import from them.
    assert ordinary.returncode != 0
    assert "cannot import name" in ordinary.stderr or "No module named" in ordinary.stderr


def ask(name: str) -> ModuleSpec | None:
    return importlib.util.find_spec(name)


def asked_by(module: str, name: str) -> ModuleSpec | None:
    """What a function of some module finds."""
    found: ModuleSpec | None = FunctionType(ask.__code__, {"__name__": module, "importlib": importlib})(name)
    return found


@pytest.mark.parametrize("module", ASKING)
def test_nobody_else_misses_them(module: str, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    found: list[ModuleSpec | None] = []
    before = importlib.util.find_spec
    with without_packages():
        for name in sorted(ABSENT):
            assert asked_by(module, name) is None
            assert asked_by("some.other", name) is not None
        asking = threading.Thread(target=lambda: found.append(asked_by(module, "peft")))
        asking.start()
        asking.join()
        assert asked_by(module, "json") is not None
        kept = importlib.util.find_spec

    assert found[0] is not None
    assert importlib.util.find_spec is before
    monkeypatch.setattr(importlib.util, "find_spec", kept)
    assert asked_by(module, "peft") is not None
