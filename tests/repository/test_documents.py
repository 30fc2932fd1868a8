"""The documents: their commands run, their paths exist, and they leave nothing out."""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from qwen_edit.contract import routes
from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse, ModelInfo, StartTimings, Timings
from qwen_edit.errors import EditError
from tests.support.places import ROOT

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
CONTRACT = (ROOT / "docs" / "contract.md").read_text()

MARK = re.compile(r"# Needs (a GPU|the network)\.")
"""The first line of a block that a test cannot run."""

FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Fenced code in a document, without its indentation."""

    place: str
    language: str
    code: str

    @property
    def is_marked(self) -> bool:
        return MARK.fullmatch(self.code.splitlines()[0]) is not None

    @property
    def is_make(self) -> bool:
        """Whether all of its commands are `make`, whose targets are checked and not run."""
        return all(line.startswith("make ") for line in self.code.splitlines())


def blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        text = document.read_text()
        for found in FENCE.finditer(text):
            line = text[: found.start()].count("\n") + 1
            yield Block(f"{document.name}:{line}", found[2], textwrap.dedent(found[3]))


BLOCKS = list(blocks())
RUN = [block for block in BLOCKS if block.language in ("sh", "python") and not block.is_marked and not block.is_make]


@pytest.fixture
def checkout(tmp_path: Path, models: Path) -> Path:
    """A folder that looks like the checkout after `make run`.

    To save time it has the tiny model in the place of the demo model, and `test_input.json` asks for a small picture.
    """
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "models", "outputs", "build", "test_input.json"):
            (tmp_path / path.name).symlink_to(path)
    job = json.loads((ROOT / "test_input.json").read_text())
    small = {"input": {**job["input"], "width": 256, "height": 256}}
    (tmp_path / "test_input.json").write_text(json.dumps(small))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "demo").symlink_to(models)
    return tmp_path


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.place)
def test_a_block_of_commands_runs(block: Block, checkout: Path) -> None:
    if "builder demo" in block.code:
        (checkout / "models" / "demo").unlink()

    command = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    done = subprocess.run(
        [*command, block.code], cwd=checkout, env=environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def environment() -> dict[str, str]:
    """The caller's, without variables that change the programs, and with the Python that runs the tests."""
    others = ("QWEN_EDIT_", "RUNPOD_", "MODEL_CACHE_DIR", "PYTEST_", "BUCKET_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return {**inherited, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_blocks_run_in_each_document_with_commands() -> None:
    assert {block.place.partition(":")[0] for block in RUN} >= {"README.md", "operations.md", "CONTRIBUTING.md"}
    assert {block.language for block in RUN} == {"sh", "python"}


def test_every_block_says_its_language() -> None:
    opened = [line for document in DOCUMENTS for line in document.read_text().splitlines() if "```" in line]
    bare = [line.strip() for line in opened[::2] if line.strip() == "```"]
    assert len(bare) == 1  # the picture of the architecture, which is no code
    assert {block.language for block in BLOCKS} == {"sh", "python", "json"}


def test_a_request_in_a_document_is_one_that_the_contract_takes() -> None:
    requests = [json.loads(block.code)["input"] for block in BLOCKS if block.language == "json"]
    assert requests
    for request in requests:
        routes.read(request)


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE)
    assert set(named) <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_module_that_is_run_exists(document: Path) -> None:
    for name in re.findall(r"python -m ([\w.]+)", document.read_text()):
        assert find_spec(name), name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def headings(document: Path) -> set[str]:
    """The anchors that a document's headings get."""
    found = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_of_the_repository_that_is_named_exists(document: Path) -> None:
    for path in re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", document.read_text()):
        if is_path(path):
            assert (ROOT / path).exists(), path


def is_path(text: str) -> bool:
    """Whether a word is meant as a path of the checkout: below one of its folders, or a file beside them.

    Folders that commands make are none: nobody has them before.
    """
    first, *rest = text.split("/")
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {".venv", "models", "outputs", "build"}
    return first in folders if rest else text.endswith((".py", ".md", ".toml", ".yaml"))


def test_operations_have_every_variable_and_no_other() -> None:
    known = re.findall(r'"([A-Z]+(?:_[A-Z]+)*)"', (ROOT / "qwen_edit" / "settings.py").read_text())
    assert "QWEN_EDIT_BACKEND" in known
    assert [name for name in known if f"`{name}`" not in OPERATIONS] == []
    named = set(re.findall(r"\bQWEN_EDIT_[A-Z_]+", "".join(document.read_text() for document in DOCUMENTS)))
    assert named <= {*known, "QWEN_EDIT_"}


def test_the_contract_has_every_code() -> None:
    rows = re.findall(r"^\| `(\w+)`", CONTRACT.partition("## Errors")[2], re.MULTILINE)
    assert sorted(rows) == sorted({error.code for error in EditError.__subclasses__()})


def test_the_contract_has_every_field() -> None:
    for model in (EditRequest, EditResponse, ModelInfo, Timings, StartTimings):
        for name, field in model.model_fields.items():
            assert f"`{field.serialization_alias or name}`" in CONTRACT, f"{model.__name__}.{name}"


def test_the_log_table_has_every_event_with_its_fields() -> None:
    rows = dict(re.findall(r"^\| `([\w ]+)` \| (?:info|warning|error) \| (.*?) \|", OPERATIONS, re.MULTILINE))
    logged = dict(events())
    assert rows.keys() == logged.keys()
    for event, fields in logged.items():
        assert sorted(re.findall(r"`(\w+)`", rows[event])) == fields, event


def events() -> Iterator[tuple[str, list[str]]]:
    """Each event that the code logs, and the names of its fields in order of the alphabet."""
    for folder in ("qwen_edit", "builder"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                match node:
                    case ast.Call(func=ast.Name(id="log" | "_line"), args=[ast.Constant(value=str(event)), *_]):
                        yield event, sorted(keyword.arg for keyword in node.keywords if keyword.arg)
