"""Text of the model directory: read whole, and JSON parsed so strictly that it means one thing. No torch here."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.files import read_file

CHECK = "check it with python3 verify_models.py"
"""The remedy for a file that is there and cannot be used."""


class FileError(ModelUnavailable):
    """A file of the model directory cannot be used. The sentence names the file and what was expected."""


def file_name(path: Path) -> str:
    """The folder and the name of a file, which is as much of its path as an error may show."""
    return f"{path.parent.name}/{path.name}"


@contextmanager
def disk_errors(name: str) -> Iterator[None]:
    """Translate what the disk raises.

    Args:
        name: what errors call the file.

    Raises:
        FileError: for any OSError.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileError(f"{name}: {error.strerror}; fetch it with python -m builder bake") from error
    except OSError as error:
        raise FileError(f"{name}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """A small file that holds UTF-8.

    Raises:
        FileError: it is not there, is no regular file, is too large, or holds something else.
    """
    name = file_name(path)
    with disk_errors(name):
        content = read_file(path)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{name}: is no text in UTF-8; {CHECK}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A small file that holds a JSON object.

    Raises:
        FileError: as for `read_text` and `parse_object`.
    """
    return parse_object(file_name(path), "the text", read_text(path))


def parse_object(name: str, what: str, text: bytes | str) -> dict[str, Any]:
    """Parse JSON that a file holds; it must be an object, and no object in it may have a key twice.

    Args:
        name: what errors call the file.
        what: what errors call the text.

    Raises:
        FileError: it is not.
    """
    try:
        document = json.loads(
            text if isinstance(text, str) else text.decode(),
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique,
        )
    except _RepeatedName as error:
        raise FileError(f"{name}: {what} has {show(error.args[0])} twice, expected each name once") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name}: {what} cannot be read, expected a JSON object: {type(error).__name__}") from error
    if not isinstance(document, dict):
        raise FileError(f"{name}: {what} is {show(document)}, expected a JSON object")
    return document


def show(value: object) -> str:
    """The value as it may stand in a sentence: it comes from a file, so it can be anything of any length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= 100 else text[:100] + "…"


class _RepeatedName(Exception):
    """Carries the name."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise _RepeatedName(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return unique


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(constant)
