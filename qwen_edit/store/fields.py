"""What is taken of a configuration: the fields that a table names, each as its row says. No torch here.

A configuration comes with the weights, so whoever made these wrote it. The libraries would take any field as an
attribute, and there are some that name code, a remote file or a dtype. A field that no table names is never looked at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_edit.store.documents import CHECK, FileError, show


@dataclass(frozen=True)
class Kind:
    """What a value may be: `fits` tells, `expected` says it in a sentence."""

    fits: Callable[[Any], bool]
    expected: str


Table = Mapping[str, Kind]
"""Field → its kind. A field that is left out or null has the library's default."""


def integer(least: int, most: int) -> Kind:
    """An integer in these bounds; `true` is none."""
    expected = str(least) if least == most else f"an integer from {least} to {most}"
    return Kind(lambda value: type(value) is int and least <= value <= most, expected)


def number(least: float, most: float) -> Kind:
    """An integer or a finite float in these bounds."""
    return Kind(
        lambda value: type(value) in (int, float) and least <= value <= most, f"a number from {least} to {most}"
    )


def flag() -> Kind:
    """True or false."""
    return Kind(lambda value: type(value) is bool, "true or false")


def never() -> Kind:
    """False: a switch of the library that must stay off."""
    return Kind(lambda value: value is False, "false")


def word(*words: str) -> Kind:
    """One of these strings."""
    return Kind(lambda value: isinstance(value, str) and value in words, " or ".join(map(repr, words)))


def several(kind: Kind, least: int, most: int) -> Kind:
    """A list of so many values of one kind."""
    count = str(least) if least == most else f"{least} to {most}"
    expected = f"a list of {count}, each {kind.expected}"
    return Kind(
        lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(kind.fits, value)), expected
    )


def take(
    name: str, document: Mapping[str, Any], table: Table, required: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The fields of a table that a document has.

    Args:
        name: what errors call the file.
        required: those of the table that it must have.

    Raises:
        FileError: a value is of another kind, or a required field is missing.
    """
    taken: dict[str, Any] = {}
    for field, kind in table.items():
        value = document.get(field)
        if value is None and field not in required:
            continue
        if not kind.fits(value):
            raise misfit(name, field, value, kind.expected)
        taken[field] = value
    return taken


def part(name: str, document: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The object that a field of a document is; an empty one where it is left out or null.

    Raises:
        FileError: it is something else.
    """
    value = document.get(field)
    if value is not None and not isinstance(value, dict):
        raise misfit(name, field, value, "an object")
    return value or {}


def misfit(name: str, field: str, value: object, expected: str) -> FileError:
    """The error of a field that is not as expected."""
    found = "missing" if value is None else show(value)
    return FileError(f"{name}: {field} is {found}, expected {expected}; {CHECK}")


def largest(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The largest side of any tensor: no width of a model is larger, and none of its layers is without a tensor."""
    return max((size for shape in shapes.values() for size in shape), default=1)
