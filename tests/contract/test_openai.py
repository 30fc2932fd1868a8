import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edit.contract import openai
from qwen_edit.contract.openai import Asked, answer, completed, error_body, models, partial
from qwen_edit.contract.request import MAX_SEED, EditRequest
from qwen_edit.errors import InvalidRequest
from tests.support.responses import PICTURES, URLS, a_response

IMAGE = "aGVsbG8="
FILE = b"\x89PNG a file"


def read(**fields: object) -> Asked:
    return openai.read({"image": IMAGE, "prompt": "make it snow", **fields})


def read_form(*files: bytes, **fields: object) -> Asked:
    return openai.read({"prompt": "make it snow", **fields}, files or [FILE], from_text=True)


def refusal(**fields: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    return caught.value


PLAIN = read().request

SILENT: dict[str, list[object]] = {
    "model": ["gpt-image-1", "", "None", "qwen", None, 3],
    "user": ["somebody", ""],
    "safety_identifier": ["hash"],
    "moderation": ["low", "auto"],
    "quality": ["auto", "standard", "", None],
    "background": ["auto", "opaque", "", None],
    "size": ["auto", "", None],
    "response_format": ["b64_json", None],
    "output_format": ["png", "PNG", None],
    "partial_images": [0, 0.0, None],
    "stream": [False, None],
    "n": [1, 1.0, None],
    "mask": [None, "", False],
    "svg": [None, False],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SILENT.items() for value in values])
def test_what_real_clients_always_send_changes_nothing(name: str, value: object) -> None:
    assert read(**{name: value}) == Asked(PLAIN, stream=False, partial_images=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quality", "high"),
        ("quality", "low"),
        ("quality", "max"),
        ("input_fidelity", "high"),
        ("input_fidelity", "low"),
        ("partial_images", 2),
    ],
)
def test_what_is_taken_and_not_used_is_a_warning(name: str, value: object) -> None:
    asked = read(**{name: value})
    (warning,) = asked.request.warnings
    assert warning.startswith(f"{name} is not used: ")
    assert asked == Asked(PLAIN.warned(warning), stream=False, partial_images=0)


REFUSED: list[tuple[str, object]] = [
    ("mask", IMAGE),
    ("mask", b"a file"),
    ("mask", {"image_url": IMAGE}),
    ("markup", IMAGE),
    ("background", "transparent"),
    ("background", "pink"),
    ("output_format", "gif"),
    ("output_format", "svg"),
    ("response_format", "path"),
    ("response_format", 3),
    ("complexity", "high"),
    ("frame_count", 4),
    ("frame_duration_ms", 100),
    ("svg", {"a": 1}),
    ("n", 0),
    ("n", 5),
    ("n", "2"),
    ("n", True),
    ("output_compression", 0),
    ("output_compression", 101),
    ("size", "100x100"),
    ("size", "original"),
    ("stream", "yes"),
    ("stream", 1),
    ("partial_images", 4),
    ("partial_images", -1),
    ("partial_images", 1.5),
    ("partial_images", True),
    ("partial_images", "2"),
    ("partial_images", 10**5000),
    ("images", [IMAGE, "b3RoZXI="]),
    ("images", [{"file_id": "file-1"}]),
    ("loras", [{"path": "a"}]),
    ("prompt", ""),
]


@pytest.mark.parametrize(("name", "value"), [pytest.param(name, value, id=name) for name, value in REFUSED])
def test_what_would_give_something_else_is_refused_and_its_name_is_the_param(name: str, value: object) -> None:
    fields = {"prompt": "make it snow", "image": IMAGE, name: value}
    if name == "images":
        del fields["image"]
    with pytest.raises(InvalidRequest) as caught:
        openai.read(fields)
    assert caught.value.fields == (name,)
    assert name in caught.value.sentence
    assert IMAGE not in caught.value.sentence


def test_an_unknown_name_is_refused() -> None:
    assert refusal(promt="x").sentence == "'promt' is not a field, the closest is prompt"


def test_openais_names_are_the_contracts_fields() -> None:
    asked = read(n=2, output_compression=80, response_format="url", size="1024x1536", output_format="jpeg")
    expected = {"num_images": 2, "output_quality": 80, "return": "url", "output_format": "jpeg"}
    fields = {"image": IMAGE, "prompt": "make it snow", "width": 1024, "height": 1536, **expected}
    assert asked.request == EditRequest.parse(fields)


def test_the_contracts_fields_and_those_of_other_services_are_extensions() -> None:
    fields: dict[str, object] = {"steps": 20, "seed": 5, "negative_prompt": "blurry", "true_cfg_scale": 4, "rank": 128}
    assert read(**fields).request == EditRequest.parse({"image": IMAGE, "prompt": "make it snow", **fields})
    assert read(num_inference_steps=20).request.steps == 20
    assert read(guidance_scale=3.5).request.warnings


def test_two_names_for_one_field_with_different_values_are_refused() -> None:
    assert refusal(n=2, num_images=3).fields == ("num_images", "n")
    assert refusal(response_format="url", **{"return": "base64"}).fields == ("response_format", "return")
    assert read(n=2, num_images=2).request.num_images == 2


@pytest.mark.parametrize(
    "picture",
    [
        {"image": IMAGE},
        {"image": [IMAGE]},
        {"images": [IMAGE]},
        {"images": [{"image_url": IMAGE}]},
        {"image_b64": IMAGE},
        {"image_url": IMAGE},
    ],
    ids=json.dumps,
)
def test_json_has_the_picture_in_many_places(picture: dict[str, object]) -> None:
    assert openai.read({"prompt": "make it snow", **picture}).request == PLAIN


def test_a_forms_file_is_the_picture() -> None:
    request = read_form().request
    assert request.image == FILE
    assert request == EditRequest(image=FILE, prompt="make it snow")


def test_a_form_has_one_picture_wherever_it_comes_from() -> None:
    several: list[tuple[list[bytes], dict[str, object]]] = [
        ([FILE, FILE], {}),
        ([FILE], {"image": IMAGE}),
        ([FILE], {"image": [IMAGE, IMAGE]}),
    ]
    for files, fields in several:
        with pytest.raises(InvalidRequest, match=r"^invalid_request: image is a list of \d, expected one") as caught:
            read_form(*files, **fields)
        assert caught.value.fields == ("image",)
    with pytest.raises(
        InvalidRequest, match="url is a string of 8 characters and image is a file of 11 bytes"
    ) as caught:
        read_form(url=IMAGE)
    assert caught.value.fields == ("url", "image")


def test_a_forms_picture_may_be_text() -> None:
    for fields in ({"image": "1234"}, {"image": ["", "1234"]}, {"image[]": ["1234"]}, {"url": ["1234"]}):
        assert openai.read({"prompt": "x", **fields}, from_text=True).request.image == "1234"


def test_a_forms_texts_are_read_as_the_values_that_they_write() -> None:
    fields: dict[str, object] = {
        "n": "2",
        "seed": " 7 ",
        "num_inference_steps": "20.0",
        "true_cfg_scale": "1.5",
        "output_compression": "90",
        "preview": "True",
        "stream": "false",
        "partial_images": "0",
        "guidance_scale": "1.0",
        "enable_teacache": "false",
        "loras": "[]",
        "model": "None",
        "quality": "auto",
        "output_format": "jpg",
        "size": "512x640",
    }
    meant = {"num_images": 2, "seed": 7, "steps": 20, "true_cfg_scale": 1.5, "output_quality": 90, "preview": True}
    fields_meant = {**meant, "output_format": "jpeg", "width": 512, "height": 640}
    request = read_form(**fields).request
    assert request == EditRequest.parse({"image": FILE, "prompt": "make it snow", **fields_meant})
    assert request.warnings == ()


@pytest.mark.parametrize(
    "name", ["n", "seed", "steps", "size", "quality", "background", "mask", "negative_prompt", "url"]
)
@pytest.mark.parametrize("value", ["", [""], ["", ""]])
def test_an_empty_part_is_left_out(name: str, value: object) -> None:
    assert read_form(**{name: value}) == read_form()


def test_a_prompt_of_a_number_stays_text() -> None:
    for prompt in ("2", "true", "null", "[]"):
        assert read_form(prompt=prompt, negative_prompt=prompt).request.prompt == prompt


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "1e5"),
        ("seed", "nan"),
        ("seed", "0x10"),
        ("seed", "9" * 31),
        ("seed", "٣"),
        ("true_cfg_scale", "inf"),
        ("true_cfg_scale", "NaN"),
        ("true_cfg_scale", "-1.0"),
        ("n", ["1", "2"]),
        ("prompt", ["one", "two"]),
        ("stream", "yes"),
        ("preview", "1"),
    ],
)
def test_a_forms_text_of_another_kind_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_form(**{name: value})
    assert caught.value.fields == (name,)


def test_a_stream_with_partial_images_makes_previews() -> None:
    asked = read(stream=True, partial_images=2)
    assert (asked.stream, asked.partial_images, asked.request.preview) == (True, 2, True)
    assert read(stream=True, partial_images=2, preview=False).request.preview
    assert not read(stream=True).request.preview
    assert not read(partial_images=2).request.preview
    assert read(stream=True, partial_images=3).request.warnings == ()


def test_what_was_asked_does_not_print_the_picture() -> None:
    assert IMAGE not in repr(read())
    assert "PNG" not in repr(read_form())


def test_the_reply_is_openais_with_the_receipt_beside_it() -> None:
    response = a_response()
    reply = answer(response, 1_700_000_000)
    assert json.loads(json.dumps(reply, allow_nan=False)) == reply
    assert reply["created"] == 1_700_000_000
    assert reply["data"] == [{"b64_json": "aGVsbG8="}]
    assert (reply["output_format"], reply["size"], reply["background"]) == ("png", "1024x768", "opaque")
    contract = response.to_json()
    for name in ("seed", "model_config", "timings", "warnings"):
        assert reply[name] == contract[name]
    assert "usage" not in reply
    assert "quality" not in reply


def test_the_reply_has_every_picture_or_every_address() -> None:
    two = a_response(image="MA==", images=["MA==", "MQ=="])
    assert answer(two, 0)["data"] == [{"b64_json": "MA=="}, {"b64_json": "MQ=="}]
    assert answer(a_response(**URLS), 0)["data"] == [{"url": "https://example.com/0.png"}]


def test_the_reply_is_never_longer_than_the_contracts() -> None:
    for pictures in (PICTURES, {"image": "A" * 200, "images": ["A" * 200] * 4}):
        image = {"image": "A" * 200, "images": ["A" * 200]} if pictures is PICTURES else pictures
        response = a_response(**image)
        assert len(json.dumps(answer(response, 2_000_000_000))) <= len(json.dumps(response.to_json()))


def test_a_partial_image_is_an_event() -> None:
    event = partial("UklGRg==", 1, 1_700_000_000, (1024, 768))
    assert event == {
        "type": "image_edit.partial_image",
        "b64_json": "UklGRg==",
        "partial_image_index": 1,
        "created_at": 1_700_000_000,
        "background": "opaque",
        "output_format": "webp",
        "size": "1024x768",
    }
    assert "size" not in partial("UklGRg==", 0, 0)


def test_each_picture_is_completed_with_its_own_seed() -> None:
    response = a_response(image="MA==", images=["MA==", "MQ=="])
    first, second = (completed(response, index, 1_700_000_000) for index in range(2))
    assert json.loads(json.dumps(first)) == first
    assert first["type"] == second["type"] == "image_edit.completed"
    assert first["created_at"] == 1_700_000_000
    assert (first["b64_json"], second["b64_json"]) == ("MA==", "MQ==")
    assert (first["seed"], second["seed"]) == (MAX_SEED, 0)
    assert first["size"] == "1024x768"
    assert completed(a_response(**URLS), 0, 0)["url"] == "https://example.com/0.png"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "invalid_request_error"),
        (410, "invalid_request_error"),
        (413, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_errors_type_follows_its_status(status: int, kind: str) -> None:
    error = {"message": "one sentence", "type": kind, "param": "n", "code": "invalid_request"}
    assert error_body("one sentence", status, param="n", code="invalid_request") == {"error": error}
    assert error_body("one sentence", status) == {"error": {**error, "param": None, "code": None}}


def test_there_is_one_model() -> None:
    listed = models(1_700_000_000)
    assert listed["object"] == "list"
    assert listed["data"] == [
        {"id": "qwen-image-edit", "object": "model", "created": 1_700_000_000, "owned_by": "qwen-edit"}
    ]


NAMES = st.sampled_from([*openai.DIALECT, *EditRequest.model_fields, "stream", "partial_images"]) | st.text(max_size=8)
TEXTS = st.text(max_size=10) | st.sampled_from(
    ["8", "1.0", "true", "None", "[]", "auto", "512x512", "url", "png", IMAGE]
)
VALUES = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["image_url", "width"]), inner),
    max_leaves=5,
)
FILES = st.lists(st.binary(max_size=8), max_size=2)


@given(st.dictionaries(NAMES, VALUES, max_size=5), FILES)
def test_any_json_is_an_edit_or_a_refusal(fields: dict[str, object], files: list[bytes]) -> None:
    with suppress(InvalidRequest):
        assert isinstance(openai.read({"prompt": "x", **fields}, files), Asked)


@given(st.dictionaries(NAMES, TEXTS | st.lists(TEXTS, max_size=3), max_size=6), FILES)
def test_any_form_is_an_edit_or_a_refusal(fields: dict[str, object], files: list[bytes]) -> None:
    with suppress(InvalidRequest):
        assert isinstance(openai.read({"prompt": "x", **fields}, files, from_text=True), Asked)
