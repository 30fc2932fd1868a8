"""A model directory of links, of which a test replaces some, and what can be done to a file."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from qwen_edit.store.catalog import BASE_FOLDER

BASE = BASE_FOLDER
Damage = Callable[[Path], None]


def linked(models: Path, folder: Path) -> Path:
    """A model directory whose files are links to those of another."""
    for path in sorted(models.rglob("*")):
        if path.is_file():
            link = folder / path.relative_to(models)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return folder


def removed(path: Path) -> None:
    path.unlink()


def replaced(content: bytes) -> Damage:
    """Other bytes in the place of the file."""

    def damage(path: Path) -> None:
        path.unlink()
        path.write_bytes(content)

    return damage


def changed(change: Callable[[bytes], bytes]) -> Damage:
    """Bytes that are made of those of the file."""

    def damage(path: Path) -> None:
        replaced(change(path.read_bytes()))(path)

    return damage


def half(content: bytes) -> bytes:
    """What a cut copy leaves."""
    return content[: len(content) // 2]


def noise(content: bytes) -> bytes:
    """Random bytes, as many."""
    return random.Random(len(content)).randbytes(len(content))


def bits_flipped(content: bytes) -> bytes:
    """The upper bit of every tenth byte."""
    return bytes(byte ^ 0x80 if place % 10 == 0 else byte for place, byte in enumerate(content))


def in_utf_16(content: bytes) -> bytes:
    """The text in another encoding."""
    return content.decode().encode("utf-16")


DAMAGES: dict[str, Damage] = {
    "removed": removed,
    "empty": replaced(b""),
    "half": changed(half),
    "noise": changed(noise),
    "bits flipped": changed(bits_flipped),
    "utf-16": changed(in_utf_16),
    "a null byte": replaced(b"\0"),
    "nested": replaced(b'{"a":' * 100_000),
    "a long number": replaced(b'{"a": ' + b"9" * 10_000 + b"}"),
    "a list": replaced(b"[]"),
    "a string": replaced(b'"text"'),
    "a number": replaced(b"7"),
    "null": replaced(b"null"),
    "not a number": replaced(b'{"a": NaN}'),
    "a name twice": replaced(b'{"a": 1, "a": 2}'),
}
"""What can happen to any text file of the model directory."""


def with_field(field: str, value: object) -> Damage:
    """A JSON file with another value at a place like `text_config.vocab_size`."""

    def change(content: bytes) -> bytes:
        document = json.loads(content)
        *above, last = field.split(".")
        inner = document
        for name in above:
            inner = inner[name]
        inner[last] = value
        return json.dumps(document).encode()

    return changed(change)
