import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from builder.bake.errors import BakeError
from builder.bake.models_option import INCOMPLETE
from builder.bake.record import Record, write
from qwen_edit.store.manifest import FILE_NAME, Entry, Manifest


def entry(path: str, size: int) -> Entry:
    return Entry(path, size, "0" * 64, "x/y", "z")


def test_many_threads_write_one_manifest(tmp_path: Path) -> None:
    record = Record(tmp_path, Manifest())
    files = [entry(f"file-{number:02}", number) for number in range(40)]
    threads = [threading.Thread(target=put_all, args=(record, files[start::4])) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Manifest.read(tmp_path) == Manifest(tuple(files))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def put_all(record: Record, files: list[Entry]) -> None:
    for file in files:
        record.put(file)


def test_a_record_replaces_and_forgets(tmp_path: Path) -> None:
    record = Record(tmp_path, Manifest((entry("a", 1), entry("b", 3))))
    record.put(entry("a", 2))
    record.drop(["b", "unknown"])
    assert Manifest.read(tmp_path) == Manifest((entry("a", 2),))


def test_a_manifest_is_replaced_in_one_step(tmp_path: Path) -> None:
    write(tmp_path, Manifest())
    with (tmp_path / FILE_NAME).open() as before:
        write(tmp_path, Manifest((entry("a", 1),)))
        assert Manifest.parse(before.read()) == Manifest()


WRONG = [
    replace(entry("a", 1), bytes=-5),
    replace(entry("a", 1), sha256="A" * 64),
    replace(entry("a", 1), path="../up"),
    replace(entry("a", 1), path="x" * 300),
    replace(entry("a", 1), repository=None),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_reader_would_refuse_is_not_recorded(tmp_path: Path, wrong: Entry) -> None:
    record = Record(tmp_path, Manifest())
    record.put(entry("good", 1))

    with pytest.raises(BakeError, match=r"^manifest\.json .*, so it is not written; "):
        record.put(wrong)
    record.put(entry("later", 2))

    assert Manifest.read(tmp_path) == Manifest((entry("good", 1), entry("later", 2)))


@pytest.mark.parametrize("link", [True, False], ids=["link", "pipe"])
def test_a_manifest_is_written_beside_whatever_lies_in_the_place_of_its_draft(tmp_path: Path, link: bool) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    models.mkdir()
    elsewhere.write_text("another's")
    draft = models / f"{FILE_NAME}{INCOMPLETE}"
    if link:
        draft.symlink_to(elsewhere)
    else:
        os.mkfifo(draft)

    write(models, Manifest((entry("a", 1),)))

    assert Manifest.read(models) == Manifest((entry("a", 1),))
    assert not (models / FILE_NAME).is_symlink()
    assert elsewhere.read_text() == "another's"
