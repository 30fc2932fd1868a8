import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository.foreign_names import ROWS, TRIED, markdown
from tests.support.places import ROOT

FOLDERS = ("qwen_edit", "builder", "training")
OF_FILES = {"_class_name", "_scale"}
"""Words of the file formats, which are written as strings and are no names of Python."""

DOCUMENTED = {"_exit", "_run_finalizers"}
"""Names of Python's own library that begin like private ones, or that the worker does without where they are gone."""

PRIVATE = re.compile(r"_[A-Za-z]\w*")
DOTTED = re.compile(r"\.?(\w+\.)*_[A-Za-z]\w*(\.\w+)*")
LIBRARY = sys.stdlib_module_names


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in for the engine, where that is not installed."""
    there = set(sys.modules)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "path", [*sys.path, str(ROOT / "tests" / "support" / "stand_in")])
        yield
    for name in set(sys.modules) - there:
        if name.split(".")[0] == "nunchaku":
            del sys.modules[name]


def test_each_name_is_there() -> None:
    # Triton is there on Linux alone.
    looked_for = [row.name for row in ROWS if row.package != "triton" or importlib.util.find_spec("triton")]
    missing = [name for name in looked_for if not is_there(name)]
    assert not missing, "renamed or gone; find what took their place, and change the rows"


def test_the_document_has_the_table() -> None:
    assert markdown() in (ROOT / "docs" / "architecture.md").read_text()


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert not is_there("torch._no_such_name")
    assert not is_there("no_such_package._name")
    assert not is_there("diffusers.models.transformers.transformer_qwenimage.QwenEmbedRope._no_such_name")


def test_each_row_names_the_files_that_use_it() -> None:
    wrong = [
        (row.name, file)
        for row in ROWS
        for file in row.files
        if not re.search(rf"\b{re.escape(row.name.split('.')[-1])}\b", (ROOT / file).read_text())
    ]
    assert not wrong


def test_no_other_private_name_is_used() -> None:
    ours = {name for tree in trees().values() for name in defined(tree)}
    rows = {(file, part) for row in ROWS for file in row.files for part in row.name.split(".")}
    unknown = [
        f"{file}: {name}"
        for file, tree in trees().items()
        for name in sorted({*used(tree, ours), *overridden(tree)})
        if (file, name) not in rows and name not in DOCUMENTED
    ]
    assert not unknown, "give each a row in foreign_names.py, with what happens without it"


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch._new_name(1)",
        "from torch import _new_name",
        "from torch._new_name import something",
        "import torch._new_name",
        "import torch\ngetattr(torch, '_new_name')",
        "import torch\nvars(torch)['_new_name']",
        "import importlib\nimportlib.import_module('torch._new_name.part')",
    ],
)
def test_a_private_name_is_noticed(code: str) -> None:
    assert set(used(ast.parse(code), ours=set())) == {"_new_name"}


def test_a_private_name_that_a_class_of_ours_overrides_is_noticed() -> None:
    code = """
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
class Ours(QwenEmbedRope):
    def _compute_video_freqs(self): self._get_device_freqs = self._own = None
"""
    assert set(overridden(ast.parse(code))) == {"_compute_video_freqs", "_get_device_freqs"}


def test_the_table_says_of_each_name_with_which_version_it_was_tried() -> None:
    lines = markdown().splitlines()
    assert len(lines) == len(ROWS) + 2
    for row in ROWS:
        assert any(line.startswith(f"| {row.package} {TRIED[row.package]} | ") for line in lines)
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.package for row in ROWS} == set(TRIED)


def is_there(name: str) -> bool:
    """Whether a dotted name can be found: modules, then what they hold, at last what a class gives its objects."""
    parts = name.split(".")
    try:
        found = importlib.import_module(parts[0])
    except ImportError:
        return False
    for index, part in enumerate(parts[1:], start=2):
        if hasattr(found, part):
            found = getattr(found, part)
        elif inspect.isclass(found):
            return f"self.{part} =" in inspect.getsource(found) and index == len(parts)
        else:
            try:
                found = importlib.import_module(".".join(parts[:index]))
            except ImportError:
                return False
    return True


def trees() -> dict[str, ast.Module]:
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    names = {file.relative_to(ROOT).as_posix(): file for file in files}
    return {name: parsed(file) for name, file in names.items()}


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def defined(tree: ast.AST) -> Iterator[str]:
    """The names that our own code gives something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def used(tree: ast.Module, ours: set[str]) -> Iterator[str]:
    """The private names of others: taken as attributes, imported, or written as strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from private(node.attr, ours)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from private(alias.name, ours)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] not in LIBRARY:
            for alias in node.names:
                yield from private(f"{node.module}.{alias.name}", ours)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
            yield from private(node.value, ours | OF_FILES)


def private(dotted: str, ours: set[str]) -> Iterator[str]:
    yield from (part for part in dotted.split(".") if PRIVATE.fullmatch(part) and part not in ours)


def overridden(tree: ast.Module) -> Iterator[str]:
    """The private names of a foreign class that a class of ours, which derives from it, gives something else."""
    origins = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] not in {*LIBRARY, *FOLDERS}
        for alias in node.names
    }
    for node in ast.walk(tree):
        for base in node.bases if isinstance(node, ast.ClassDef) else ():
            if isinstance(base, ast.Name) and base.id in origins:
                module, name = origins[base.id]
                theirs = set(dir(getattr(importlib.import_module(module), name)))
                yield from (own for own in theirs.intersection(defined(node)) if PRIVATE.fullmatch(own))
