"""The JSON contract: what is asked for."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import ErrorDetails

from qwen_edit.errors import InvalidRequest
from qwen_edit.store.catalog import CHECKPOINTS, OLD_RANKS, OLD_STEPS, RANK

AskedFormat = Literal["png", "jpeg", "webp", "auto"]
"""`auto` is PNG, or what fits the reply where PNG does not."""

MAX_PROMPT = 4000
"""Characters."""

MAX_SEED = 2**63 - 1
"""The largest seed that a torch generator takes as a signed integer."""

MIN_SIDE, MAX_SIDE = 256, 2048
"""Pixels of an asked width or height."""

_OTHER_NAMES = {"num_inference_steps": "steps", "return": "return_as"}
"""Another name of a field → the field. Python has no keyword argument named `return`."""

_RANKS = (*OLD_RANKS, RANK)
_STEPS = (range(OLD_STEPS, OLD_STEPS + 1), *(checkpoint.steps for checkpoint in CHECKPOINTS))
_STEPS_TEXT = ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in _STEPS)
_PLAIN_TEXT = "without NUL or lone surrogates"
_MAX_SHOWN = 40
_MAX_UNKNOWN = 5


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character")
    return text


def _known_rank(rank: int) -> int:
    if rank not in _RANKS:
        raise ValueError("not a rank")
    return rank


def _known_steps(steps: int) -> int:
    if not any(steps in span for span in _STEPS):
        raise ValueError("not a step count")
    return steps


def _random_as_none(seed: int | None) -> int | None:
    return None if seed == -1 else seed


Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]


class EditRequest(BaseModel):
    """One edit, as it was asked for; `selection.plan` decides what is run.

    A field that is left out or None has its default. `seed` is None where any will do.

    Raises:
        InvalidRequest: from the constructor and from `parse`, with one sentence about every field that is wrong.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    # A field's description completes the sentence "<field> is <value>, expected ...".
    image: str = Field(min_length=1, repr=False, description="base64 or a data URI of a picture")
    prompt: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_PROMPT), AfterValidator(_without_nul)
    ] = Field(description=f"1 to {MAX_PROMPT:,} characters after trimming, {_PLAIN_TEXT}")
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_without_nul)] = Field(
        default=" ", description=f"at most {MAX_PROMPT:,} characters, {_PLAIN_TEXT}"
    )
    rank: Annotated[int, AfterValidator(_known_rank)] = Field(
        default=RANK, description=f"the integer {RANK} ({' and '.join(map(str, OLD_RANKS))} run as {RANK})"
    )
    steps: Annotated[int, AfterValidator(_known_steps)] | None = Field(
        default=None,
        validation_alias=AliasChoices("steps", "num_inference_steps"),
        description=f"an integer out of {_STEPS_TEXT}",
    )
    true_cfg_scale: float | None = Field(default=None, ge=1, le=20, description="a number from 1 to 20")
    seed: Annotated[int | None, AfterValidator(_random_as_none)] = Field(
        default=None, ge=-1, le=MAX_SEED, description=f"an integer from 0 to {MAX_SEED}, or -1 for any"
    )
    width: Side | None = Field(default=None, description=f"an integer from {MIN_SIDE} to {MAX_SIDE}")
    height: Side | None = Field(default=None, description=f"an integer from {MIN_SIDE} to {MAX_SIDE}")
    num_images: int = Field(default=1, ge=1, le=4, description="an integer from 1 to 4")
    output_format: AskedFormat = Field(default="png", description="'png', 'jpeg', 'webp' or 'auto'")
    output_quality: int = Field(default=95, ge=1, le=100, description="an integer from 1 to 100")
    return_as: Literal["base64", "url"] = Field(
        default="base64", validation_alias=AliasChoices("return", "return_as"), description="'base64' or 'url'"
    )
    preview: bool = Field(default=False, description="true or false")

    # Type checkers keep the constructor that they derive from the fields.
    if not TYPE_CHECKING:

        def __init__(self, /, **fields: object) -> None:
            _refuse_unknown(fields)
            try:
                super().__init__(**_given(fields))
            except ValidationError as error:
                errors = error.errors(include_url=False, include_context=False)
                # Without the cause: pydantic's own message is not one sentence.
                raise InvalidRequest("; ".join(map(_complaint, errors)), *map(_name, errors)) from None
            if (self.width is None) != (self.height is None):
                alone, other = ("width", "height") if self.height is None else ("height", "width")
                sentence = f"{alone} is {getattr(self, alone)} without {other}, expected both or neither"
                raise InvalidRequest(sentence, alone, other)

    @classmethod
    def parse(cls, payload: object) -> Self:
        """Read an untrusted JSON value, such as a job's input."""
        if not isinstance(payload, dict):
            raise InvalidRequest(f"input is {_shown(payload)}, expected an object with image and prompt")
        for name in payload:
            if not isinstance(name, str):
                raise InvalidRequest(f"input has the field name {_shown(name)}, expected a string")
        return cls(**payload)


def _refuse_unknown(names: Iterable[str]) -> None:
    known = [*EditRequest.model_fields, *_OTHER_NAMES]
    unknown = [name for name in names if name not in known]
    if unknown:
        complaints = [_unknown(name, known) for name in unknown[:_MAX_UNKNOWN]]
        more = len(unknown) - _MAX_UNKNOWN
        raise InvalidRequest("; ".join(complaints) + (f"; nor are {more:,} more" if more > 0 else ""))


def _unknown(name: str, known: list[str]) -> str:
    (closest,) = difflib.get_close_matches(name[:_MAX_SHOWN], known, n=1, cutoff=0.0)
    return f"{_shown(name)} is not a field, the closest is {closest}"


def _given(fields: Mapping[str, object]) -> dict[str, object]:
    given = {name: value for name, value in fields.items() if value is not None}
    for other, name in _OTHER_NAMES.items():
        if name in given and other in given:
            first, second = _shown(given[name]), _shown(given.pop(other))
            if first != second:
                sentence = f"{name} is {first} and {other} is {second}, expected one of them or the same"
                raise InvalidRequest(sentence, name, other)
    return given


def _name(error: ErrorDetails) -> str:
    return str(error["loc"][0])


def _complaint(error: ErrorDetails) -> str:
    name = _name(error)
    expected = EditRequest.model_fields[_OTHER_NAMES.get(name, name)].description
    if error["type"] == "missing":
        return f"{name} is missing, expected {expected}"
    # What the caller sent to be looked at or read is not repeated, not even a few characters: replies are logged.
    longest = 0 if name in ("image", "prompt", "negative_prompt") else _MAX_SHOWN
    return f"{name} is {_shown(error['input'], longest)}, expected {expected}"


def _shown(value: object, longest: int = _MAX_SHOWN) -> str:
    match value:
        case None | bool():
            return json.dumps(value)
        case int():
            # Beyond some thousand digits, Python refuses to print an integer.
            return str(value) if value.bit_length() <= 64 else "an integer of more than 64 bits"
        case float():
            return repr(value)
        case str() if len(value) <= longest:
            return repr(value)
        case str():
            return f"a string of {len(value):,} characters"
        case list() | tuple():
            return f"a list of {len(value):,}"
        case dict():
            return f"an object of {len(value):,} fields"
    return f"a Python {type(value).__name__}"
