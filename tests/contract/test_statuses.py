from collections.abc import Iterator

import pytest

from qwen_edit.contract.statuses import status
from qwen_edit.errors import EditError

STATUSES = {
    "invalid_request": 400,
    "invalid_image": 400,
    "image_too_large": 413,
    "output_too_large": 422,
    "cancelled": 410,
    "model_unavailable": 503,
    "out_of_memory": 507,
    "internal": 500,
}


def errors(base: type[EditError] = EditError) -> Iterator[type[EditError]]:
    for error in base.__subclasses__():
        yield error
        yield from errors(error)


def test_every_code_of_the_contract_has_a_status() -> None:
    assert {error.code for error in errors()} == set(STATUSES)


@pytest.mark.parametrize(("code", "expected"), STATUSES.items())
def test_a_code_has_its_status(code: str, expected: int) -> None:
    assert status(code) == expected
    assert type(status(code)) is int


def test_a_code_of_nobody_is_an_internal_error() -> None:
    assert status("unheard_of") == 500


def test_openais_client_repeats_no_status_of_a_callers_mistake_or_wish() -> None:
    callers = ["invalid_request", "invalid_image", "image_too_large", "output_too_large", "cancelled"]
    assert not {status(code) for code in callers} & {408, 409, 429, *range(500, 600)}
