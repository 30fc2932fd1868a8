import json
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.record import Record, write
from qwen_edit.manifest import FILE_NAME, VERSION, Entry, Manifest, ManifestError

names = st.text(st.characters(exclude_characters="/\\", exclude_categories=["Cs"]), min_size=1, max_size=9).filter(
    lambda name: name not in (".", "..")
)
entries = st.builds(
    Entry,
    path=st.lists(names, min_size=1, max_size=3).map("/".join),
    bytes=st.integers(0, 2**63),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    repository=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    revision=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
manifests = st.lists(entries, max_size=5, unique_by=lambda entry: entry.path).map(
    lambda files: Manifest(tuple(sorted(files)))
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(manifests)
def test_a_manifest_comes_back_as_it_was_written(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.dump()) == manifest


@given(manifests, st.randoms())
def test_the_order_of_the_files_does_not_change_the_text(manifest: Manifest, chance: random.Random) -> None:
    shuffled = list(manifest.files)
    chance.shuffle(shuffled)
    assert Manifest(tuple(shuffled)).dump() == manifest.dump()


@given(manifests)
def test_every_file_is_found_by_its_path(manifest: Manifest) -> None:
    assert [manifest.entry(entry.path) for entry in manifest.files] == list(manifest.files)
    assert manifest.entry("no/such/file/in/it") is None


@given(st.text(max_size=50) | values.map(json.dumps))
def test_any_text_is_a_manifest_or_refused(text: str) -> None:
    try:
        Manifest.parse(text)
    except ManifestError as error:
        assert FILE_NAME in str(error)


@given(entries, st.sampled_from(["path", "bytes", "sha256", "repository", "revision"]), values)
def test_any_value_in_an_entry_is_right_or_refused(entry: Entry, field: str, value: object) -> None:
    item = {**entry.__dict__, field: value}
    try:
        (parsed,) = Manifest.parse(json.dumps({"version": VERSION, "files": [item]})).files
    except ManifestError as error:
        assert FILE_NAME in str(error)
    else:
        assert parsed == Entry(**item)


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../b", "a//b", "a\\b", "", "a/.", "."])
def test_a_path_outside_the_model_directory_is_refused(path: str) -> None:
    item = {"path": path, "bytes": 1, "sha256": "0" * 64, "repository": "x/y", "revision": "z"}
    with pytest.raises(ManifestError, match="outside the model directory"):
        Manifest.parse(json.dumps({"version": VERSION, "files": [item]}))


def test_many_threads_write_one_manifest(tmp_path: Path) -> None:
    record = Record(tmp_path, Manifest())
    files = [Entry(f"file-{number}", number, "0" * 64, "x/y", "z") for number in range(40)]
    threads = [
        threading.Thread(target=lambda part=files[start::4]: [record.put(entry) for entry in part])
        for start in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Manifest.read(tmp_path) == Manifest(tuple(sorted(files)))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_record_replaces_and_forgets(tmp_path: Path) -> None:
    old, new, other = (Entry(path, size, "0" * 64, "x/y", "z") for path, size in (("a", 1), ("a", 2), ("b", 3)))
    record = Record(tmp_path, Manifest((old, other)))
    record.put(new)
    record.drop(["b", "unknown"])
    assert Manifest.read(tmp_path) == Manifest((new,))


def test_a_manifest_is_replaced_in_one_step(tmp_path: Path) -> None:
    write(tmp_path, Manifest())
    before = (tmp_path / FILE_NAME).open()
    write(tmp_path, Manifest((Entry("a", 1, "0" * 64, "x/y", "z"),)))
    with before:
        assert Manifest.parse(before.read()) == Manifest()
