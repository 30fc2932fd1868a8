import math
from typing import Any

import pytest

from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.fields import Kind, flag, integer, largest, never, number, part, several, take, word

NAME = "vae/config.json"


def test_only_the_fields_of_the_table_are_taken() -> None:
    document = {"z_dim": 16, "auto_map": {"AutoModel": "code.Model"}, "dtype": "float64"}

    assert take(NAME, document, {"z_dim": integer(1, 16), "base_dim": integer(1, 8)}) == {"z_dim": 16}


def test_a_field_that_is_null_is_left_to_the_library() -> None:
    assert take(NAME, {"z_dim": None}, {"z_dim": integer(1, 16)}) == {}


def test_a_required_field_is_missed() -> None:
    with pytest.raises(
        ModelUnavailable, match=rf"{NAME}: z_dim is missing, expected an integer from 1 to 16; check it"
    ):
        take(NAME, {}, {"z_dim": integer(1, 16)}, frozenset({"z_dim"}))


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (integer(1, 8), [1, 8], [0, 9, 10**30, 1.0, True, "1", [], {}]),
        (number(0, 1), [0, 1, 0.5], [-0.1, 1.1, math.inf, math.nan, 10**400, True, "0", []]),
        (flag(), [True, False], [0, 1, "true", []]),
        (never(), [False], [True, 0, "false"]),
        (word("silu", "gelu"), ["silu"], ["relu", "", 1, ["silu"]]),
        (several(integer(1, 2), 1, 2), [[1], [1, 2]], [[], [1, 1, 1], [3], (1,), "1", {"1": 1}]),
    ],
)
def test_a_value_is_of_its_kind_or_refused(kind: Kind, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert take(NAME, {"field": value}, {"field": kind}) == {"field": value}
    for value in bad:
        with pytest.raises(ModelUnavailable, match=f"{NAME}: field is .*, expected "):
            take(NAME, {"field": value}, {"field": kind})


def test_a_part_is_an_object_or_refused() -> None:
    assert part(NAME, {"inner": {"a": 1}}, "inner") == {"a": 1}
    assert part(NAME, {}, "inner") == {}
    with pytest.raises(ModelUnavailable, match=rf"{NAME}: inner is \[\], expected an object"):
        part(NAME, {"inner": []}, "inner")


def test_the_sentence_is_short_whatever_the_value() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        take(NAME, {"field": "\x1b" * 10**6}, {"field": flag()})

    assert len(refused.value.sentence) < 300
    assert refused.value.sentence.isprintable()


def test_the_largest_side_of_all_tensors_is_found() -> None:
    assert largest({"a": (3, 5), "b": (4,), "c": ()}) == 5
    assert largest({}) == 1
