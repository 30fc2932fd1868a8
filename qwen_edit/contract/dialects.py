"""Other services' field names → the contract's. One table; a row says how a field reads.

A field that cannot be honoured is answered with a warning where leaving it out changes nothing for the caller, and is
refused where it does. A value that means "nothing asked" is neither.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from qwen_edit.contract.sentences import shown, shown_of
from qwen_edit.errors import InvalidRequest

_NOTHING: tuple[object, ...] = (False, "", b"", [], {})
"""Values that ask for nothing, beside null. Zero equals False."""


@dataclass(frozen=True)
class Renamed:
    """Another name of the contract's `field`. Where there are `values`, these words alone are taken, translated."""

    field: str
    values: Mapping[str, str] | None = None
    usual: tuple[object, ...] = ()


@dataclass(frozen=True)
class Picture:
    """The picture: itself, a list of it alone, or `{"image_url": …}` in place of it."""

    usual: tuple[object, ...] = ("", b"", [])


@dataclass(frozen=True)
class Size:
    """Width and height in one: `1024x768`, `1024*768`, `{"width": 1024, "height": 768}` or one of fal's words."""

    usual: tuple[object, ...] = ("", "auto", {})


@dataclass(frozen=True)
class Ignored:
    """Taken without a word, because it asks for nothing that could be left out."""

    usual: tuple[object, ...] = ()


@dataclass(frozen=True)
class Unused:
    """Answered with a warning, which says `why` leaving it out changes nothing; not so for the `usual` values."""

    why: str
    usual: tuple[object, ...] = ()


@dataclass(frozen=True)
class Refused:
    """Refused, because the caller would get something else; not so for the `usual` values."""

    expected: str
    usual: tuple[object, ...] = ()
    is_private: bool = False


Reading = Renamed | Picture | Size | Ignored | Unused | Refused

_NO_CHECKER = "there is no safety checker here, and no result is checked"
_NO_LORA = "nothing, because LoRAs are not served"
_NO_MASK = Refused("nothing, because masks are not served", is_private=True)
_SPEED = "only steps trade the picture for speed"

SERVICES: Mapping[str, Reading] = MappingProxyType(
    {
        # The contract's own.
        "return": Renamed("return_as"),  # Python has no keyword argument of that name
        "image": Picture(usual=([],)),
        "size": Size(),  # also RunPod's public endpoint, SGLang, vLLM-Omni
        # RunPod's public endpoint; `prompt`, `negative_prompt`, `seed` and `output_format` are the contract's.
        "images": Picture(),
        "image_b64": Picture(),  # the console's own example
        "enable_safety_checker": Unused(_NO_CHECKER),
        "loras": Refused(_NO_LORA),
        # Replicate.
        "aspect_ratio": Refused(
            "'match_input_image', or width and height in its place",
            usual=("match_input_image", "auto"),
        ),
        "go_fast": Unused(_SPEED),
        "disable_safety_checker": Ignored(),  # there is none
        "lora_weights": Refused(_NO_LORA),
        "lora_scale": Unused("there is no LoRA that it could scale"),
        # fal.
        "image_url": Picture(),
        "image_urls": Picture(),
        "image_size": Size(),
        "num_inference_steps": Renamed("steps"),
        # In diffusers, SGLang and vLLM-Omni this is the strength for a guidance-distilled transformer. This one is not
        # (`guidance_embeds` is false), so all three ignore it, and clients send 1.0 beside a true_cfg_scale of 4, as
        # the model card does: read as true_cfg_scale, the two would contradict each other. At fal it means
        # true_cfg_scale, 4 where left out: read so, every such request would take twice as long with lightning, which
        # is distilled to run without. Nobody can tell the two meanings apart, so it is not used, and the reply says so.
        "guidance_scale": Unused("the model is not guidance-distilled; its guidance is true_cfg_scale", usual=(1,)),
        "sync_mode": Unused("the pictures are in the reply unless return is 'url'"),
        "acceleration": Unused(_SPEED, usual=("none",)),
        # SGLang and vLLM-Omni, beyond OpenAI's fields.
        "url": Picture(),
        "url[]": Picture(),
        "image[]": Picture(),
        "images[]": Picture(),
        "reference_image": Refused("nothing, because one picture is edited: image", is_private=True),
        "mask_image": _NO_MASK,
        "mask_url": _NO_MASK,
        "mask": _NO_MASK,
        "enable_teacache": Unused(_SPEED),
        "generator_device": Unused("the seed's noise is drawn on the CPU, and is the same for every device"),
        "enhance_prompt": Refused("false, because the prompt runs as it is"),
        "enable_upscaling": Refused("false, because no result is enlarged"),
        "task_type": Ignored(),  # the one task here is the edit
    }
)
"""A field's name → how it reads: RunPod's public endpoint, Replicate, fal, SGLang and vLLM-Omni."""

_WORDS = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""fal's words for an image_size → width and height."""

_SIDES = re.compile(r"\s*([0-9]{1,5})\s*[xX*×]\s*([0-9]{1,5})\s*")


@dataclass(frozen=True)
class Given:
    """A value for a field of the contract, the name that the caller gave it, and what a sentence calls it."""

    name: str
    words: str
    value: object = field(repr=False)


@dataclass(frozen=True)
class Translation:
    """The contract's fields that were given, and sentences on what was left out."""

    given: Mapping[str, Given]
    warnings: tuple[str, ...]


def translate(fields: Mapping[str, object], dialect: Mapping[str, Reading]) -> Translation:
    """Read fields as the contract's. A name that is not in the dialect stays as it is, and null is left out.

    Raises:
        InvalidRequest: a field that cannot be honoured, or two different values for one.
    """
    given: dict[str, Given] = {}
    warnings: list[str] = []
    for name in sorted(fields, key=dialect.__contains__):  # the contract's own names first
        value, reading = fields[name], dialect.get(name, Renamed(name))
        if value is None or value in reading.usual:
            continue
        if not isinstance(reading, Unused | Refused):
            for target, one in _readings(name, value, reading):
                _add(given, target, one)
        elif value not in _NOTHING:
            warnings.append(_warning(name, value, reading))
    return Translation(given, tuple(warnings))


def _warning(name: str, value: object, reading: Unused | Refused) -> str:
    if isinstance(reading, Unused):
        return f"{name} is not used: {reading.why}"
    value_shown = shown(value, 0) if reading.is_private else shown(value)
    raise InvalidRequest(f"{name} is {value_shown}, expected {reading.expected}", name)


def _readings(name: str, value: object, reading: Renamed | Picture | Size | Ignored) -> Iterator[tuple[str, Given]]:
    match reading:
        case Renamed(target, values):
            yield target, Given(name, name, value if values is None else _word(name, value, values))
        case Picture():
            yield "image", Given(name, name, _picture(name, value))
        case Size():
            for target, side in zip(("width", "height"), _sides(name, value), strict=True):
                yield target, Given(name, f"the {target} of {name}", side)


def _add(given: dict[str, Given], target: str, one: Given) -> None:
    other = given.setdefault(target, one)
    if not _is_same(other.value, one.value):
        first, second = shown_of(target, other.value), shown_of(target, one.value)
        sentence = f"{other.words} is {first} and {one.words} is {second}, expected one of them or the same"
        raise InvalidRequest(sentence, other.name, one.name)


def _is_same(one: object, other: object) -> bool:
    if one is other:
        return True
    # A bool equals a number; a comparison of nested values may go deeper than Python does.
    is_scalar = isinstance(one, str | bytes | int | float)
    return is_scalar and isinstance(one, bool) == isinstance(other, bool) and one == other


def _word(name: str, value: object, values: Mapping[str, str]) -> str:
    for word, translated in values.items():
        if value == word:
            return translated
    raise InvalidRequest(f"{name} is {shown(value)}, expected {' or '.join(map(repr, values))}", name)


def _picture(name: str, value: object) -> object:
    if isinstance(value, list):
        if len(value) != 1:
            raise InvalidRequest(f"{name} is {shown(value)}, expected one picture", name)
        (value,) = value
    if isinstance(value, dict) and value.keys() == {"image_url"}:
        return value["image_url"]
    return value


def _sides(name: str, value: object) -> tuple[object, object]:
    if isinstance(value, dict) and value.keys() == {"width", "height"}:
        return value["width"], value["height"]
    if isinstance(value, str):
        if value in _WORDS:
            return _WORDS[value]
        if found := _SIDES.fullmatch(value):
            return int(found[1]), int(found[2])
    raise InvalidRequest(f"{name} is {shown(value)}, expected 'auto' or a width and a height, such as '1024x768'", name)
