"""The floor plan: who may import whom, and how large a room may become."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.places import ROOT

FLOORS = (
    ("version", "errors", "log"),
    ("store",),
    ("settings", "public_addresses"),
    ("contract", "https"),
    ("pictures",),
    ("edit",),
    ("weights",),
    ("svdq",),
    ("machine",),
    ("model",),
    ("loading",),
    ("editor",),
    ("serving",),
    ("__init__", "__main__"),
)
"""The rooms of `qwen_edit`, and its modules outside of rooms, from the ground up. Nothing imports what is above it."""

WITHOUT_TORCH = ("contract", "edit", "pictures", "serving", "store")
DOORS = {"qwen_edit/__main__.py"}
"""The one module of `qwen_edit` that imports the builder."""

CODE = ("qwen_edit", "builder", "training", "bench", "deploy", "tests")
MOST_MODULES, MOST_LINES = 12, 50
SHORT = {"qwen_edit/editor.py": 200, "qwen_edit/model/sampling.py": 200, "qwen_edit/serving/service.py": 200}
"""Files that a reader sees whole, and the lines that they may have."""

LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[str]:
    """What a file imports, wherever in it the import stands: dotted names, a module's or of something in one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_of(path: Path) -> set[Path]:
    """The files of the repository that a file imports."""
    found = set()
    for name in imported(path):
        parts = name.split(".")
        for length in (len(parts), len(parts) - 1):
            file = ROOT.joinpath(*parts[:length]).with_suffix(".py") if length else ROOT
            package = ROOT.joinpath(*parts[:length]) / "__init__.py"
            if target := next((one for one in (file, package) if one.is_file()), None):
                found.add(target)
                break
    return found


def room_of(path: Path) -> str:
    """The first folder below `qwen_edit`, or the name of a module that is in none."""
    first = path.relative_to(ROOT / "qwen_edit").parts[0]
    return first.removesuffix(".py")


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in files("qwen_edit")} == set(LEVELS)


def test_nothing_imports_what_is_above_it() -> None:
    upward = [
        (name_of(path), name_of(other))
        for path in files("qwen_edit")
        for other in modules_of(path)
        if other.is_relative_to(ROOT / "qwen_edit") and LEVELS[room_of(other)] > LEVELS[room_of(path)]
    ]
    assert upward == []


def test_torch_is_imported_where_the_plan_says() -> None:
    rooms = [ROOT / "qwen_edit" / room for room in WITHOUT_TORCH]
    plain = [path for path in files("qwen_edit") if any(path.is_relative_to(room) for room in rooms)]
    plain += [path for path in files("qwen_edit/machine") if path.name != "device.py"]
    heavy = {"torch", "diffusers", "transformers"}

    assert [name_of(path) for path in plain if heavy & {name.split(".")[0] for name in imported(path)}] == []


def test_serving_knows_neither_the_model_nor_how_it_is_loaded() -> None:
    below = (ROOT / "qwen_edit" / "model", ROOT / "qwen_edit" / "loading")
    known = [
        (name_of(path), name_of(other))
        for path in files("qwen_edit/serving")
        for other in modules_of(path)
        if other.is_relative_to(below[0]) or other.is_relative_to(below[1])
    ]
    assert known == []


def test_the_two_sides_do_not_import_each_other() -> None:
    store = ROOT / "qwen_edit"
    builder = {name_of(path) for path in files("qwen_edit") if "builder" in {n.split(".")[0] for n in imported(path)}}
    assert builder == DOORS
    used = {room_of(other) for path in files("builder") for other in modules_of(path) if other.is_relative_to(store)}
    assert used <= {"store", "svdq", "weights", "errors", "log"}
    assert not [path for path in files("qwen_edit", "builder") if any(n.startswith("training") for n in imported(path))]


def test_no_module_leads_back_to_itself() -> None:
    graph = {path: modules_of(path) for path in files("qwen_edit", "builder", "training")}
    ends: set[Path] = set()
    while found := [path for path, others in graph.items() if path not in ends and others & set(graph) <= ends]:
        ends.update(found)
    assert [name_of(path) for path in graph if path not in ends] == []


@pytest.mark.parametrize("folder", sorted({path.parent for path in files(*CODE[:3], "bench")}), ids=name_of)
def test_a_folder_has_a_dozen_modules_at_most(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_MODULES


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        (name_of(path), node.name, node.end_lineno - node.lineno + 1)
        for path in [*files(*CODE), ROOT / "handler.py", ROOT / "verify_models.py"]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MOST_LINES
    ]
    assert long == []


def test_what_a_reader_should_see_whole_is_short() -> None:
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in (*SHORT, "handler.py")}
    assert {name: count for name, count in lines.items() if count > {**SHORT, "handler.py": 40}[name]} == {}
