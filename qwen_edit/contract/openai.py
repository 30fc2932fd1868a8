"""OpenAI's shape of an edit, `POST /v1/images/edits`: its words in, its words out.

Fields and events are those of the openai package 3.57. The contract's own fields and those of `dialects.SERVICES` are
taken beside OpenAI's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from qwen_edit.contract.dialects import SERVICES, Ignored, Picture, Reading, Refused, Renamed, Unused
from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse
from qwen_edit.contract.sentences import shown
from qwen_edit.errors import InvalidRequest

ROUTE = "/v1/images/edits"
MODELS_ROUTE = "/v1/models"

MODEL = "qwen-image-edit"
"""The one model of `GET /v1/models`. A request may name any other: clients have names built in."""

MAX_PARTIAL_IMAGES = 3

_NO_VIDEO = "nothing, because the result is a still picture of pixels"

DIALECT: Mapping[str, Reading] = MappingProxyType(
    {
        **SERVICES,
        "n": Renamed("num_images"),
        "output_compression": Renamed("output_quality"),
        "response_format": Renamed("return_as", values={"b64_json": "base64", "url": "url"}),
        "model": Ignored(),
        "user": Ignored(),
        "safety_identifier": Ignored(),
        "moderation": Ignored(),
        "quality": Unused("steps choose the quality", usual=("auto", "standard")),
        "input_fidelity": Unused("the model always sees the whole picture"),
        "background": Refused("'auto' or 'opaque'", usual=("auto", "opaque")),
        "markup": Refused("nothing, because no markup is read", is_private=True),
        "svg": Refused(_NO_VIDEO),
        "complexity": Refused(_NO_VIDEO),
        "frame_count": Refused(_NO_VIDEO),
        "frame_duration_ms": Refused(_NO_VIDEO),
    }
)
"""A field's name → how it reads. `stream` and `partial_images` are read besides: they are of the reply's way."""

_TEXTS = frozenset({"prompt", "negative_prompt"})
_WORDS: Mapping[str, object] = MappingProxyType(
    {"": None, "null": None, "none": None, "true": True, "false": False, "[]": [], "{}": {}}
)
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,30}\.[0-9]{0,30}")


@dataclass(frozen=True)
class Asked:
    """An edit asked for in OpenAI's words: whether the reply is a stream, and how many previews that should have."""

    request: EditRequest
    stream: bool
    partial_images: int


def read(fields: Mapping[str, object], images: Sequence[bytes] = (), *, from_text: bool = False) -> Asked:
    """Read a body.

    Args:
        fields: JSON values, or a form's texts, a list of them for a part that comes several times.
        images: the files of the parts `image` and `image[]`. Another part's file may be bytes in `fields`.
        from_text: whether the fields are a form's: numbers and booleans as text, and an empty part is left out.

    Raises:
        InvalidRequest: a field is unknown, wrong or cannot be honoured.
    """
    given = {name: _from_text(name, value) if from_text else value for name, value in fields.items()}
    stream = _flag("stream", given.pop("stream", None))
    partial_images = _partial_images(given.pop("partial_images", None))
    if images:
        given["image"] = [*_listed(given.get("image")), *images]
    if stream and partial_images:
        given["preview"] = True  # partial images are the previews
    request = EditRequest.parse(given, DIALECT)
    if partial_images and not stream:
        return Asked(request.warned("partial_images is not used: there is none without stream"), stream, 0)
    return Asked(request, stream, partial_images)


def answer(response: EditResponse, created: int) -> dict[str, object]:
    """The reply in one piece, of JSON types alone. It has no `usage`: nothing here counts OpenAI's tokens.

    Args:
        response: the contract's; its `seed`, `model_config`, `timings` and `warnings` are repeated.
        created: seconds since 1970.
    """
    return {"created": created, "data": _pictures(response), **_described(response)}


def partial(preview: str, index: int, created: int, size: tuple[int, int] | None = None) -> dict[str, object]:
    """The event of a preview.

    Args:
        preview: base64 of a WebP.
        index: which one it is, from 0.
        created: seconds since 1970.
        size: width and height of the result in pixels, where they are known already.
    """
    event: dict[str, object] = {
        "type": "image_edit.partial_image",
        "b64_json": preview,
        "partial_image_index": index,
        "created_at": created,
        "background": "opaque",
        "output_format": "webp",
    }
    return event if size is None else {**event, "size": _size(*size)}


_NO_TOKENS: Mapping[str, object] = MappingProxyType(
    {
        "total_tokens": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    }
)
"""OpenAI's clients have `usage` in the last event for certain, and read it. Nothing is billed by tokens here: none."""


def completed(response: EditResponse, picture_index: int, created: int) -> dict[str, object]:
    """The event of one picture of the result. A result of several is as many events.

    Args:
        response: the contract's.
        picture_index: of the picture, from 0; `seed` is the picture's own.
        created: seconds since 1970.
    """
    described = _described(response)
    # As the noise is drawn: the picture at i from the seed plus i.
    described["seed"] = (response.seed + picture_index) % 2**63
    event: dict[str, object] = {
        "type": "image_edit.completed",
        "created_at": created,
        "usage": {**_NO_TOKENS},
    }
    return {**event, **_pictures(response)[picture_index], **described}


def error_body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """The body of an answer with an HTTP status of 400 or more."""
    return {"error": {"message": message, "type": _error_type(status), "param": param, "code": code}}


def models(created: int) -> dict[str, object]:
    """The answer to `GET /v1/models`; `created` is in seconds since 1970."""
    model = {"id": MODEL, "object": "model", "created": created, "owned_by": "qwen-edit"}
    return {"object": "list", "data": [model]}


def _pictures(response: EditResponse) -> list[dict[str, str]]:
    if response.images is not None:
        return [{"b64_json": image} for image in response.images]
    return [{"url": url} for url in response.urls or ()]


def _described(response: EditResponse) -> dict[str, object]:
    reply = response.to_json()
    return {
        "background": "opaque",
        "output_format": response.format,
        "size": _size(response.width, response.height),
        **{name: reply[name] for name in ("seed", "model_config", "timings", "warnings")},
    }


def _size(width: int, height: int) -> str:
    return f"{width}x{height}"


def _error_type(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 429:
            return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _flag(name: str, value: object) -> bool:
    if value is None or isinstance(value, bool):
        return value or False
    raise InvalidRequest(f"{name} is {shown(value)}, expected true or false", name)


def _partial_images(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, int | float) and not isinstance(value, bool) and value in range(MAX_PARTIAL_IMAGES + 1):
        return int(value)
    sentence = f"partial_images is {shown(value)}, expected an integer from 0 to {MAX_PARTIAL_IMAGES}"
    raise InvalidRequest(sentence, "partial_images")


def _listed(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _from_text(name: str, value: object) -> object:
    if isinstance(value, list):
        return [one for one in (_from_text(name, one) for one in value) if one is not None] or None
    if not isinstance(value, str) or not value:
        return value or None
    if name in _TEXTS or isinstance(DIALECT.get(name), Picture):
        return value
    return _scalar(value)


def _scalar(text: str) -> object:
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text
