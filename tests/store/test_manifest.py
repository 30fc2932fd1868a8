import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edit.store.manifest import FILE_NAME, Entry, Manifest, ManifestError

PARTS = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=8)
PATHS = st.lists(PARTS.filter(lambda part: part not in (".", "..")), min_size=1, max_size=4).map("/".join)
ENTRIES = st.builds(
    Entry,
    path=PATHS,
    bytes=st.integers(0, 2**63),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    repository=st.text(max_size=20),
    revision=st.text(max_size=20),
)
MANIFESTS = st.lists(ENTRIES, unique_by=lambda entry: entry.path, max_size=5).map(
    lambda entries: Manifest(tuple(sorted(entries)))
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=8,
)

ONE = Entry("folder/model.safetensors", 3, "a" * 64, "owner/name", "main")


def dump(*entries: dict[str, object], version: object = 1) -> str:
    return json.dumps({"version": version, "files": entries})


@given(MANIFESTS)
def test_what_is_dumped_is_parsed_back(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.dump()) == manifest


@given(MANIFESTS, st.randoms())
def test_the_order_of_the_files_does_not_change_the_bytes(manifest: Manifest, shuffler: random.Random) -> None:
    files = list(manifest.files)
    shuffler.shuffle(files)
    assert Manifest(tuple(files)).dump() == manifest.dump()
    assert Manifest.parse(Manifest(tuple(files)).dump()) == manifest


def test_a_manifest_is_written_in_ascii_and_ends_with_a_line_break() -> None:
    text = Manifest((replace(ONE, path="bücher/模型"),)).dump()
    assert text.isascii()
    assert text.endswith("}\n")


def test_an_entry_is_found_by_its_path() -> None:
    manifest = Manifest((ONE,))
    assert manifest.entry(ONE.path) == ONE
    assert manifest.entry("absent") is None


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) is None
    assert Manifest.read(tmp_path / "absent") is None


def test_a_manifest_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(Manifest((ONE,)).dump(), encoding="utf-8")
    assert Manifest.read(tmp_path) == Manifest((ONE,))


def test_a_manifest_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ManifestError, match=r"manifest\.json cannot be read: IsADirectoryError"):
        Manifest.read(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="cannot be read"):
        Manifest.read(tmp_path)


NOT_MANIFESTS = ["", "{", "null", "[]", "3", '"text"', "{}", '{"version": 1}', '{"files": []}', "[" * 10**5, "\ufeff{}"]


@pytest.mark.parametrize("text", NOT_MANIFESTS, ids=lambda text: text[:12])
def test_text_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json is not a manifest"):
        Manifest.parse(text)


@pytest.mark.parametrize("version", [0, 2, -1, 1.0, True, "1", None, [1], [[[[[[[[1]]]]]]]]])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(ManifestError, match=r"has version .*, expected 1"):
        Manifest.parse(dump(version=version))


@pytest.mark.parametrize(
    "change",
    [
        {"path": 3},
        {"path": None},
        {"path": ["a"]},
        {"bytes": "3"},
        {"bytes": 3.0},
        {"bytes": True},
        {"sha256": None},
        {"repository": 1},
        {"revision": None},
    ],
)
def test_a_value_of_the_wrong_type_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ManifestError, match="wrong type"):
        Manifest.parse(dump({**asdict(ONE), **change}))


OUTSIDE = [
    "",
    "/",
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a//b",
    "a/",
    "./a",
    "a\\b",
    "..",
    ".",
    "a\0b",
    "a\nb",
    "\ud800",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_cannot_lie_below_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ManifestError, match="cannot lie below the model directory") as caught:
        Manifest.parse(dump({**asdict(ONE), "path": path}))
    str(caught.value).encode()


@pytest.mark.parametrize("change", [{"bytes": -1}, {"sha256": ""}, {"sha256": "g" * 64}, {"sha256": "A" * 64}])
def test_a_size_or_sum_that_cannot_be_true_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ManifestError, match="cannot be true"):
        Manifest.parse(dump({**asdict(ONE), **change}))


def test_a_file_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"names 'folder/model\.safetensors' twice"):
        Manifest.parse(dump(asdict(ONE), asdict(replace(ONE, bytes=4))))


MISSHAPEN: list[Callable[[dict[str, object]], object]] = [
    lambda entry: {**entry, "extra": 1},
    lambda entry: {"path": entry["path"]},
    lambda entry: list(entry),
    lambda entry: None,
]


@pytest.mark.parametrize("misshape", MISSHAPEN)
def test_an_entry_of_the_wrong_shape_is_refused(misshape: Callable[[dict[str, object]], object]) -> None:
    with pytest.raises(ManifestError, match="is not a manifest"):
        Manifest.parse(json.dumps({"version": 1, "files": [misshape(asdict(ONE))]}))


@given(ANY_JSON, st.dictionaries(st.sampled_from(list(asdict(ONE))), ANY_JSON))
def test_any_document_is_a_manifest_or_a_manifest_error(document: object, change: dict[str, object]) -> None:
    entry = {**asdict(ONE), **change}
    for text in (json.dumps(document), dump(entry), dump(entry, asdict(ONE)), dump(entry, version=document)):
        with suppress(ManifestError):
            Manifest.parse(text)


@given(st.text())
def test_any_text_is_a_manifest_error(text: str) -> None:
    with pytest.raises(ManifestError):
        Manifest.parse(text)
