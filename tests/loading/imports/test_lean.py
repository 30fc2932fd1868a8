import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader
from pathlib import Path

import pytest

from qwen_edit.loading.imports import lean, stand_in
from qwen_edit.loading.imports.finder import Finder, Standing, first
from qwen_edit.loading.imports.forget import forget

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes modules that can be imported, by their names, and forgets them after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, source: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def in_another_thread(ask: Callable[[], object]) -> object:
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers[0]


def test_an_import_that_fails_in_either_way_raises_its_own_error_and_logs_nothing(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("wants_another.py", "import package_that_is_not_installed")

    with (
        pytest.raises(ModuleNotFoundError, match="package_that_is_not_installed") as caught,
        lean.lean_imports("wants_another", enabled=True, compiled=False),
    ):
        pass

    assert caught.value.__context__ is None
    assert capsys.readouterr().out == ""


def test_a_patch_that_cannot_be_undone_does_not_end_a_start(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("harmless.py", "")

    @contextmanager
    def stuck(_report: stand_in.Report) -> Iterator[None]:
        yield
        raise KeyError("a name")

    monkeypatch.setattr(lean, "lean_packages", stuck)
    with lean.lean_imports("harmless", enabled=True, compiled=False):
        assert "harmless" in sys.modules

    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["error"] == "KeyError: 'a name'"


def test_an_error_inside_the_block_is_not_taken_for_one_of_the_imports(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("harmless.py", "")
    finders = list(sys.meta_path)

    with pytest.raises(ValueError, match="damaged"), lean.lean_imports("harmless", enabled=True, compiled=False):
        raise ValueError("the weights are damaged")

    assert sys.meta_path == finders
    assert capsys.readouterr().out == ""


def test_what_was_half_imported_goes_with_what_holds_a_part_of_it_and_nothing_else(write: Write) -> None:
    write("older.py", "")
    write("foreign/__init__.py", "class Model: ...")
    write("foreign/part.py", "")
    write("ours/__init__.py", "")
    write("ours/model.py", "from foreign import Model\nimport foreign.part")
    write("ours/user.py", "from ours.model import Model as Base\nclass Own(Base): ...")
    write("ours/user_of_user.py", "from ours.user import Own")
    write("ours/apart.py", "import json, older")
    write("bystander.py", "from foreign import Model")
    import older  # noqa: F401

    before = set(sys.modules)
    import bystander  # noqa: F401
    import ours.apart
    import ours.user_of_user  # noqa: F401

    forget(("foreign",), "ours", before)

    assert set(sys.modules) - before == {"bystander", "ours", "ours.apart"}


@pytest.fixture
def standing(write: Write) -> Iterator[list[Exception]]:
    """A stand-in for a package that knows one name, and the reports of it."""
    write("real/__init__.py", "known = 'the real one'\nother = 'other'\n")
    write("real/part.py", "")
    reports: list[Exception] = []

    def way(loader: Loader) -> Loader:
        return Standing(loader, lambda name: stand_in.StandIn(name, {"known": "a stand-in"}, reports.append))

    with first(Finder({"real": way})):
        yield reports


def test_a_stand_in_answers_its_own_thread_alone(standing: list[Exception]) -> None:
    import real

    assert real.known == "a stand-in"
    assert in_another_thread(lambda: real.known) == "the real one"
    assert real.known == "the real one"  # from now on it has given way
    assert type(sys.modules["real"]) is not stand_in.StandIn
    assert len(standing) == 2


def test_a_stand_in_gives_way_when_it_is_asked_for_more_and_says_so(standing: list[Exception]) -> None:
    import real
    import real.part as part

    assert not standing
    assert real.other == "other"
    assert sys.modules["real"].part is part
    assert [str(error) for error in standing] == ["real is asked for other"]
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = real.no_such_name


def test_a_finder_acts_for_the_named_modules_of_its_own_thread_alone(standing: list[Exception], write: Write) -> None:
    write("another.py", "")

    import another

    assert type(another) is not stand_in.StandIn
    in_another_thread(lambda: __import__("real"))
    assert type(sys.modules["real"]) is not stand_in.StandIn
    assert not standing


def test_all_names_of_a_package_can_be_imported_from_its_stand_in(standing: list[Exception]) -> None:
    names: dict[str, object] = {}
    exec("from real import *", names)
    assert (names["known"], names["other"]) == ("the real one", "other")
    assert standing
