"""The JSON contract: what is asked for."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
)
from pydantic_core import ErrorDetails

from qwen_edit.contract.dialects import SERVICES, Given, Ignored, Reading, Refused, Unused, translate
from qwen_edit.contract.sentences import LONGEST, shown, shown_of
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

_RANKS = (*OLD_RANKS, RANK)
_STEPS = (range(OLD_STEPS, OLD_STEPS + 1), *(checkpoint.steps for checkpoint in CHECKPOINTS))
_STEPS_TEXT = ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in _STEPS)
_PLAIN_TEXT = "without NUL or lone surrogates"
_FORMATS = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp", "auto": "auto"}
_MAX_UNKNOWN = 5


def _whole(value: object) -> object:
    # Languages with one type of numbers write 8 as 8.0.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _known_format(value: object) -> object:
    return _FORMATS.get(value.lower(), value) if isinstance(value, str) else value


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


Whole = Annotated[int, BeforeValidator(_whole)]
Side = Annotated[Whole, Field(ge=MIN_SIDE, le=MAX_SIDE)]


class EditRequest(BaseModel):
    """One edit, as it was asked for; `selection.plan` decides what is run.

    A field that is left out or None has its default. `seed` is None where any will do. The fields may have the names
    of other services; see `dialects`.

    Raises:
        InvalidRequest: from the constructor and from `parse`, with one sentence about every field that is wrong.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, ser_json_bytes="base64"
    )

    # A field's description completes the sentence "<field> is <value>, expected ...".
    # Bytes are a file's; JSON has none.
    image: Annotated[str, Field(min_length=1)] | Annotated[bytes, Field(min_length=1)] = Field(
        repr=False, description="base64 or a data URI of a picture"
    )
    prompt: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_PROMPT), AfterValidator(_without_nul)
    ] = Field(description=f"1 to {MAX_PROMPT:,} characters after trimming, {_PLAIN_TEXT}")
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_without_nul)] = Field(
        default=" ", description=f"at most {MAX_PROMPT:,} characters, {_PLAIN_TEXT}"
    )
    rank: Annotated[Whole, AfterValidator(_known_rank)] = Field(
        default=RANK, description=f"the integer {RANK} ({' and '.join(map(str, OLD_RANKS))} run as {RANK})"
    )
    steps: Annotated[Whole, AfterValidator(_known_steps)] | None = Field(
        default=None, description=f"an integer out of {_STEPS_TEXT}"
    )
    true_cfg_scale: float | None = Field(default=None, ge=1, le=20, description="a number from 1 to 20")
    seed: Annotated[Whole | None, AfterValidator(_random_as_none)] = Field(
        default=None, ge=-1, le=MAX_SEED, description=f"an integer from 0 to {MAX_SEED}, or -1 for any"
    )
    width: Side | None = Field(default=None, description=f"an integer from {MIN_SIDE} to {MAX_SIDE}")
    height: Side | None = Field(default=None, description=f"an integer from {MIN_SIDE} to {MAX_SIDE}")
    num_images: Whole = Field(default=1, ge=1, le=4, description="an integer from 1 to 4")
    output_format: Annotated[AskedFormat, BeforeValidator(_known_format)] = Field(
        default="png", description="'png', 'jpeg', 'webp' or 'auto'"
    )
    output_quality: Whole = Field(default=95, ge=1, le=100, description="an integer from 1 to 100")
    return_as: Literal["base64", "url"] = Field(
        default="base64", validation_alias=AliasChoices("return", "return_as"), description="'base64' or 'url'"
    )
    preview: bool = Field(default=False, description="true or false")

    _warnings: tuple[str, ...] = PrivateAttr(default=())

    # Type checkers keep the constructor that they derive from the fields.
    if not TYPE_CHECKING:

        def __init__(self, dialect: Mapping[str, Reading] = SERVICES, /, **fields: object) -> None:
            _refuse_unknown(fields, dialect)
            translation = translate(fields, dialect)
            given = translation.given
            try:
                super().__init__(**{name: one.value for name, one in given.items()})
            except ValidationError as error:
                errors = error.errors(include_url=False, include_context=False)
                # One for each type that a field may have.
                complaints = dict.fromkeys(_complaint(one, given) for one in errors)
                names = dict.fromkeys(_name(one, given) for one in errors)
                # Without the cause: pydantic's own message is not one sentence.
                raise InvalidRequest("; ".join(complaints), *names) from None
            if (self.width is None) != (self.height is None):
                alone, other = ("width", "height") if self.height is None else ("height", "width")
                sentence = f"{alone} is {getattr(self, alone)} without {other}, expected both or neither"
                raise InvalidRequest(sentence, alone, other)
            self._warnings = translation.warnings

    @classmethod
    def parse(cls, payload: object, dialect: Mapping[str, Reading] = SERVICES) -> Self:
        """Read an untrusted JSON value, such as a job's input.

        Args:
            payload: an object of fields.
            dialect: how the names of other services read.
        """
        if not isinstance(payload, dict):
            raise InvalidRequest(f"input is {shown(payload)}, expected an object with image and prompt")
        for name in payload:
            if not isinstance(name, str):
                raise InvalidRequest(f"input has the field name {shown(name)}, expected a string")
        build: Callable[..., Self] = cls
        return build(dialect, **payload)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what was asked for and is left out. The reply repeats them; no field sets them."""
        return self._warnings

    def warned(self, *sentences: str) -> Self:
        """The same request with more `warnings`."""
        copy = self.model_copy()
        copy._warnings = (*self._warnings, *sentences)
        return copy


def _refuse_unknown(names: Iterable[str], dialect: Mapping[str, Reading]) -> None:
    unknown = [name for name in names if name not in EditRequest.model_fields and name not in dialect]
    if unknown:
        served = [name for name, reading in dialect.items() if not isinstance(reading, Ignored | Unused | Refused)]
        known = [*EditRequest.model_fields, *served]
        complaints = [_unknown(name, known) for name in unknown[:_MAX_UNKNOWN]]
        more = len(unknown) - _MAX_UNKNOWN
        error = InvalidRequest("; ".join(complaints) + (f"; nor are {more:,} more" if more > 0 else ""))
        # Not among its fields: the log has these, and this is the caller's word.
        error.param = unknown[0][:LONGEST]
        raise error


def _unknown(name: str, known: list[str]) -> str:
    (closest,) = difflib.get_close_matches(name[:LONGEST], known, n=1, cutoff=0.0)
    return f"{shown(name)} is not a field, the closest is {closest}"


def _name(error: ErrorDetails, given: Mapping[str, Given]) -> str:
    name = str(error["loc"][0])
    return given[name].name if name in given else name


def _complaint(error: ErrorDetails, given: Mapping[str, Given]) -> str:
    name = str(error["loc"][0])
    expected = EditRequest.model_fields[name].description
    if error["type"] == "missing":
        return f"{name} is missing, expected {expected}"
    return f"{given[name].words} is {shown_of(name, error['input'])}, expected {expected}"
