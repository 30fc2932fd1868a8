import copy
import pickle
from collections.abc import Callable

import pytest

from qwen_edit import errors
from qwen_edit.errors import EditError

CODES = {
    "invalid_request",
    "invalid_image",
    "image_too_large",
    "model_unavailable",
    "out_of_memory",
    "cancelled",
    "output_too_large",
    "internal",
}


def test_every_code_of_the_contract_has_its_own_exception() -> None:
    kinds = EditError.__subclasses__()
    assert sorted(kind.code for kind in kinds) == sorted(CODES)


@pytest.mark.parametrize("kind", EditError.__subclasses__())
def test_an_error_reads_as_code_and_sentence(kind: type[EditError]) -> None:
    error = kind("steps is 9, expected 8")
    assert str(error) == f"{kind.code}: steps is 9, expected 8"
    assert (error.code, error.sentence) == (kind.code, "steps is 9, expected 8")


@pytest.mark.parametrize("travel", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_survives_a_copy(travel: Callable[[errors.InvalidImage], errors.InvalidImage]) -> None:
    error = errors.InvalidImage("image is empty")
    travelled = travel(error)
    assert (type(travelled), str(travelled)) == (errors.InvalidImage, "invalid_image: image is empty")


def test_a_settings_error_has_no_code_because_no_caller_sees_it() -> None:
    assert not issubclass(errors.SettingsError, EditError)
