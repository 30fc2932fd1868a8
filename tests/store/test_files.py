import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_edit.errors import ModelUnavailable
from qwen_edit.store import documents
from qwen_edit.store.files import MOST_BYTES, file_size, open_file, read_file
from qwen_edit.store.folder import BASE_FILES, base_weights, read_manifest
from qwen_edit.store.manifest import FILE_NAME
from tests.support.damages import BASE, linked


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


NOT_FILES = (pipe, endless, folder, loop)


@pytest.mark.parametrize("place", NOT_FILES)
def test_anything_but_a_regular_file_is_refused_at_once(tmp_path: Path, place: Callable[[Path], None]) -> None:
    place(tmp_path / "file")

    with pytest.raises(OSError, match=r"not a regular file|Is a directory|Too many levels"):
        open_file(tmp_path / "file")
    assert file_size(tmp_path / "file") is None


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")

    assert read_file(tmp_path / "link") == b"text"
    assert file_size(tmp_path / "link") == 4


def test_a_file_is_read_up_to_the_size_that_it_may_have(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10))

    assert read_file(tmp_path / "file", 10) == bytes(10)
    with pytest.raises(OSError, match="it has more than 9 bytes"):
        read_file(tmp_path / "file", 9)


def test_a_file_whose_size_the_system_does_not_tell_is_read_too() -> None:
    assert read_file(Path("/proc/self/status")).startswith(b"Name:")


def test_a_name_that_no_disk_can_hold_is_no_file(tmp_path: Path) -> None:
    assert file_size(tmp_path / ("x" * 300)) is None
    assert file_size(tmp_path / "a\0b") is None


def test_a_file_beyond_the_size_is_not_read_into_memory(tmp_path: Path) -> None:
    huge(tmp_path / "vocab.json")

    with pytest.raises(ModelUnavailable, match=rf"vocab\.json: cannot be read: it has more than {MOST_BYTES} bytes"):
        documents.read_object(tmp_path / "vocab.json")


@pytest.mark.parametrize("place", [*NOT_FILES, huge])
@pytest.mark.parametrize("name", [*BASE_FILES, "text_encoder/model.safetensors.index.json"])
def test_every_file_of_the_base_model_is_looked_at_before_a_library_opens_it(
    models: Path, tmp_path: Path, name: str, place: Callable[[Path], None]
) -> None:
    copy = linked(models, tmp_path / "models")
    (copy / BASE / name).unlink()
    place(copy / BASE / name)

    with pytest.raises(ModelUnavailable) as refused:
        base_weights(copy)

    assert name in refused.value.sentence
    assert str(tmp_path) not in refused.value.sentence


@pytest.mark.parametrize("place", [*NOT_FILES, huge])
def test_a_manifest_that_is_no_small_file_is_refused(tmp_path: Path, place: Callable[[Path], None]) -> None:
    place(tmp_path / FILE_NAME)

    with pytest.raises(ModelUnavailable, match=r"manifest\.json cannot be read: .*; write it again with python -m"):
        read_manifest(tmp_path)
