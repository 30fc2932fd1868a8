import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edit.contract import openai
from qwen_edit.contract.dialects import SERVICES, Ignored, Picture, Refused, Renamed, Size, Unused
from qwen_edit.contract.request import EditRequest
from qwen_edit.edit.prepare import prepare
from qwen_edit.errors import EditError, ImageTooLarge, InvalidImage, InvalidRequest
from qwen_edit.pictures.read import MAX_BYTES
from qwen_edit.settings import Settings

IMAGE = "aGVsbG8="
OTHER = "b3RoZXI="


def parse(**fields: object) -> EditRequest:
    return EditRequest.parse({"image": IMAGE, "prompt": "make it snow", **fields})


def parse_without_image(**fields: object) -> EditRequest:
    return EditRequest.parse({"prompt": "make it snow", **fields})


def refusal(**fields: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


REQUESTS: dict[str, tuple[dict[str, object], dict[str, object], list[str]]] = {
    "RunPod's public endpoint": (
        {
            "image": IMAGE,
            "prompt": "make it snow",
            "negative_prompt": "",
            "seed": -1,
            "size": "1024*768",
            "output_format": "png",
            "enable_safety_checker": True,
        },
        {"negative_prompt": "", "width": 1024, "height": 768},
        ["enable_safety_checker"],
    ),
    "RunPod's public endpoint for 2511": (
        {"images": [IMAGE], "prompt": "make it snow", "loras": [], "size": "1024*1024", "seed": 3},
        {"width": 1024, "height": 1024, "seed": 3},
        [],
    ),
    "Replicate": (
        {
            "image": IMAGE,
            "prompt": "make it snow",
            "go_fast": True,
            "aspect_ratio": "match_input_image",
            "output_format": "webp",
            "output_quality": 80,
            "disable_safety_checker": False,
        },
        {"output_format": "webp", "output_quality": 80},
        ["go_fast"],
    ),
    "Replicate with defaults for a LoRA": (
        {"image": IMAGE, "prompt": "make it snow", "lora_weights": "", "lora_scale": 1, "go_fast": False},
        {},
        ["lora_scale"],
    ),
    "fal": (
        {
            "image_url": IMAGE,
            "prompt": "make it snow",
            "image_size": "landscape_4_3",
            "num_inference_steps": 30,
            "guidance_scale": 4,
            "num_images": 2,
            "sync_mode": False,
            "acceleration": "regular",
            "loras": [],
            "output_format": "jpeg",
            "negative_prompt": "blurry",
            "enable_safety_checker": False,
        },
        {
            "width": 1024,
            "height": 768,
            "steps": 30,
            "num_images": 2,
            "output_format": "jpeg",
            "negative_prompt": "blurry",
        },
        ["guidance_scale", "acceleration"],
    ),
    "fal's plus": (
        {
            "image_urls": [IMAGE],
            "prompt": "make it snow",
            "image_size": {"width": 512, "height": 640},
            "sync_mode": True,
            "acceleration": "none",
            "guidance_scale": None,
        },
        {"width": 512, "height": 640},
        ["sync_mode"],
    ),
    "SGLang": (
        {
            "url": IMAGE,
            "prompt": "make it snow",
            "seed": 1,
            "true_cfg_scale": 4.0,
            "num_inference_steps": 20,
            "output_quality": 90,
            "enable_teacache": False,
            "generator_device": "cuda",
            "enable_upscaling": False,
            "guidance_scale": 1.0,
            "enhance_prompt": False,
            "task_type": "I2I",
        },
        {"seed": 1, "true_cfg_scale": 4.0, "steps": 20, "output_quality": 90},
        ["generator_device"],
    ),
    "vLLM-Omni": (
        {
            "url": [IMAGE],
            "prompt": "make it snow",
            "size": "auto",
            "guidance_scale": 1.0,
            "true_cfg_scale": 4,
            "reference_image": None,
            "mask_image": None,
        },
        {"true_cfg_scale": 4},
        [],
    ),
}


@pytest.mark.parametrize("service", REQUESTS)
def test_a_request_to_another_service_is_the_same_request_here(service: str) -> None:
    fields, meant, warned = REQUESTS[service]
    request = EditRequest.parse(fields)
    assert request.model_dump() == parse(**meant).model_dump()
    assert [warning.partition(" is not used: ")[0] for warning in request.warnings] == warned


@pytest.mark.parametrize("name", [name for name, reading in SERVICES.items() if isinstance(reading, Picture)])
@pytest.mark.parametrize("value", [IMAGE, [IMAGE], {"image_url": IMAGE}, [{"image_url": IMAGE}]])
def test_the_picture_comes_under_many_names_and_alone_in_a_list(name: str, value: object) -> None:
    assert parse_without_image(**{name: value}).image == IMAGE


@pytest.mark.parametrize("name", [name for name, reading in SERVICES.items() if isinstance(reading, Picture)])
def test_several_pictures_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is a list of 2, expected one picture") as caught:
        parse_without_image(**{name: [IMAGE, OTHER]})
    assert caught.value.fields == (name,)
    assert caught.value.sentence.startswith(f"{name} is ")


@pytest.mark.parametrize("value", [3, True, {"file_id": "file-1"}, {"url": IMAGE}, [[IMAGE]], [None], [3], "\ud800"])
def test_what_is_no_picture_is_refused_under_the_callers_name(value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_without_image(image_url=value)
    assert caught.value.fields == ("image_url",)
    assert caught.value.sentence.startswith("image_url is ")
    assert caught.value.sentence.count("image_url is") == 1


def test_the_same_picture_may_come_twice_and_another_one_may_not() -> None:
    assert parse(image_url=IMAGE) == parse()
    error = refusal(image_url=OTHER)
    assert error.fields == ("image", "image_url")
    assert "expected one of them or the same" in error.sentence
    assert IMAGE not in error.sentence
    assert OTHER not in error.sentence


SIZES: list[tuple[object, tuple[int | None, int | None]]] = [
    ("1024*768", (1024, 768)),
    ("1024x768", (1024, 768)),
    ("1024X768", (1024, 768)),
    ("1024 × 768", (1024, 768)),
    ({"width": 1024, "height": 768}, (1024, 768)),
    ({"width": 1024.0, "height": 768.0}, (1024, 768)),
    ("square_hd", (1024, 1024)),
    ("square", (512, 512)),
    ("portrait_4_3", (768, 1024)),
    ("portrait_16_9", (576, 1024)),
    ("landscape_4_3", (1024, 768)),
    ("landscape_16_9", (1024, 576)),
    ("auto", (None, None)),
    ("", (None, None)),
    (None, (None, None)),
    ({}, (None, None)),
    ({"width": None, "height": None}, (None, None)),
]


@pytest.mark.parametrize("name", ["size", "image_size"])
@pytest.mark.parametrize(("value", "sides"), SIZES)
def test_a_size_is_width_and_height(name: str, value: object, sides: tuple[int | None, int | None]) -> None:
    request = parse(**{name: value})
    assert (request.width, request.height) == sides
    assert request.warnings == ()


WRONG_SIZES: list[object] = [
    *("original", "1024", "1024:768", "16:9", "axb", "-512x512", "512x512x512", "١٠٢٤x768", "1024x", "99999999x1"),
    *(1024, True, [1024, 768], {"width": 1024}, {"width": 1024, "height": 768, "depth": 1}, math.nan),
]


@pytest.mark.parametrize("value", WRONG_SIZES)
def test_any_other_size_is_refused(value: object) -> None:
    error = refusal(size=value)
    assert error.sentence.startswith("size is ")
    assert error.sentence.endswith("expected 'auto' or a width and a height, such as '1024x768'")
    assert error.fields == ("size",)


def test_a_side_out_of_range_is_refused_with_the_name_that_the_caller_used() -> None:
    error = refusal(size="100x512")
    assert error.sentence == "the width of size is 100, expected an integer from 256 to 2048"
    assert error.fields == ("size",)
    assert refusal(image_size={"width": 512, "height": "512"}).sentence.startswith("the height of image_size is '512'")
    assert refusal(image_size={"width": 512, "height": None}).sentence == (
        "width is 512 without height, expected both or neither"
    )


def test_a_size_beside_sides_must_be_the_same() -> None:
    assert parse(size="512x640", width=512, height=640) == parse(width=512, height=640)
    assert parse(size="512x640", image_size={"width": 512.0, "height": 640}) == parse(width=512, height=640)
    error = refusal(size="512x640", width=512, height=512)
    assert error.sentence == "height is 512 and the height of size is 640, expected one of them or the same"
    assert error.fields == ("height", "size")


def test_a_number_in_two_ways_of_writing_is_the_same() -> None:
    assert parse(steps=20, num_inference_steps=20.0) == parse(steps=20)


def test_a_long_prompt_under_one_name_does_not_pass_for_another() -> None:
    assert refusal(image="A" * 100, image_url="B" * 100).fields == ("image", "image_url")


UNUSED: list[tuple[str, object]] = [
    ("enable_safety_checker", True),
    ("go_fast", True),
    ("sync_mode", True),
    ("acceleration", "high"),
    ("enable_teacache", True),
    ("generator_device", "cpu"),
    ("guidance_scale", 4),
    ("guidance_scale", 3.5),
    ("lora_scale", 1.5),
]


@pytest.mark.parametrize(("name", "value"), UNUSED)
def test_what_changes_nothing_for_the_caller_is_a_warning(name: str, value: object) -> None:
    request = parse(**{name: value})
    (warning,) = request.warnings
    assert warning.startswith(f"{name} is not used: ")
    assert request.model_dump() == parse().model_dump()


REFUSED: list[tuple[str, object]] = [
    ("loras", [{"path": "a", "scale": 1}]),
    ("loras", "a"),
    ("lora_weights", "somebody/something"),
    ("aspect_ratio", "16:9"),
    ("aspect_ratio", "1:1"),
    ("mask", "aGVsbG8="),
    ("mask", b"a file"),
    ("mask_url", "https://example.com/mask.png"),
    ("mask_image", "aGVsbG8="),
    ("reference_image", "aGVsbG8="),
    ("enhance_prompt", True),
    ("enable_upscaling", True),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_would_give_the_caller_something_else_is_refused(name: str, value: object) -> None:
    error = refusal(**{name: value})
    assert error.fields == (name,)
    assert error.sentence.startswith(f"{name} is ")
    assert ", expected " in error.sentence
    assert "aGVsbG8=" not in error.sentence
    assert "example.com" not in error.sentence


@pytest.mark.parametrize("value", [None, False, "", [], {}, 0])
@pytest.mark.parametrize("name", [name for name, row in SERVICES.items() if isinstance(row, Unused | Refused)])
def test_a_value_that_asks_for_nothing_is_silent(name: str, value: object) -> None:
    request = parse(**{name: value})
    assert request == parse()
    assert request.warnings == ()


def test_no_field_of_a_request_sets_the_warnings() -> None:
    for name in ("warnings", "_warnings", "warned"):
        assert "is not a field" in refusal(**{name: ["one"]}).sentence
    assert parse().warned("one", "two").warnings == ("one", "two")
    assert parse(go_fast=True).warned("one").warnings[1:] == ("one",)


def test_the_closest_name_is_one_that_is_served() -> None:
    closest = {refusal(**{f"{name}s": 1}).sentence.rpartition(" ")[2] for name in ("mask", "go_fast", "aspect_ratio")}
    assert closest <= set(EditRequest.model_fields) | {
        name for name, reading in SERVICES.items() if isinstance(reading, Renamed | Picture | Size)
    }


def test_the_names_of_unknown_fields_are_not_for_the_log() -> None:
    assert refusal(**{"a secret": 1}).fields == ()


def test_every_row_leads_to_the_contract() -> None:
    for name, reading in openai.DIALECT.items():
        if isinstance(reading, Renamed):
            assert reading.field in EditRequest.model_fields, name
        else:
            assert isinstance(reading, Picture | Size | Ignored | Unused | Refused), name


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"Dear Sir,\n" * 9, InvalidImage),
        (b"\x89PNG\r\n\x1a\n" + bytes(MAX_BYTES), ImageTooLarge),
        (b"https://example.com/cat.png", InvalidImage),
    ],
    ids=["a text", "too large", "an address"],
)
def test_bytes_have_the_limits_of_base64(data: bytes, error: type[EditError]) -> None:
    with pytest.raises(error):
        prepare(EditRequest(image=data, prompt="make it snow"), Settings(allow_urls=True))


SCALARS = st.none() | st.booleans() | st.integers(-2, 2100) | st.floats() | st.text(max_size=8) | st.binary(max_size=4)
WORDS = st.sampled_from([IMAGE, "auto", "512x512", "png", "url", "b64_json", "true", "8", "1.0", "square"])
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["image_url", "width", "height", "path"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from([*EditRequest.model_fields, *SERVICES]) | st.text(max_size=8), VALUES, max_size=5)
)
def test_any_fields_of_any_service_are_a_request_or_a_refusal(fields: dict[str, object]) -> None:
    with suppress(InvalidRequest):
        assert all(isinstance(warning, str) for warning in parse(**fields).warnings)
