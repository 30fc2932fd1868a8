import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edit.contract.dialects import SERVICES
from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import Timings
from qwen_edit.errors import InvalidRequest
from tests.support.responses import PICTURES, URLS, a_response

FIELDS = [*EditRequest.model_fields, *SERVICES]
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=50)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=6,
)


def parse(**fields: object) -> EditRequest:
    return EditRequest.parse({"image": "aGVsbG8=", "prompt": "make it snow", **fields})


def refusal(**fields: object) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.__cause__ is None
    return caught.value.sentence


def test_what_is_left_out_has_the_defaults_of_the_contract() -> None:
    assert parse().model_dump() == {
        "image": "aGVsbG8=",
        "prompt": "make it snow",
        "negative_prompt": " ",
        "rank": 128,
        "steps": None,
        "true_cfg_scale": None,
        "seed": None,
        "width": None,
        "height": None,
        "num_images": 1,
        "output_format": "png",
        "output_quality": 95,
        "return_as": "base64",
        "preview": False,
    }


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("image", "prompt")])
def test_null_means_left_out(name: str) -> None:
    assert parse(**{name: None}) == parse()


@pytest.mark.parametrize("name", ["image", "prompt"])
@pytest.mark.parametrize("fields", [{}, {"image": None, "prompt": None}])
def test_a_missing_field_is_named(name: str, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} is missing"):
        EditRequest.parse(fields)


GOOD: dict[str, list[object]] = {
    "prompt": ["x", "x" * 4000, "下雪", "e\u0301", "two\nlines", "🙂"],
    "negative_prompt": ["", " ", "blurry", "x" * 4000],
    "rank": [128, 64, 32],
    "steps": [4, 8, 20, 37, 50],
    "true_cfg_scale": [1, 1.0, 2.5, 20],
    "seed": [0, 1, 2**63 - 1],
    "num_images": [1, 2, 3, 4],
    "output_format": ["png", "jpeg", "webp", "auto"],
    "output_quality": [1, 95, 100],
    "return_as": ["base64", "url"],
    "preview": [True, False],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_a_value_of_the_contract_is_taken_as_it_is(name: str, value: object) -> None:
    assert getattr(parse(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [("rank", 64), ("steps", 8), ("num_images", 2), ("output_quality", 90)])
def test_a_whole_number_may_be_written_as_a_decimal(name: str, value: int) -> None:
    read = getattr(parse(**{name: float(value)}), name)
    assert read == value
    assert type(read) is int


def test_a_seed_and_sides_may_be_written_as_decimals() -> None:
    assert parse(seed=7.0, width=512.0, height=256.0) == parse(seed=7, width=512, height=256)
    assert parse(seed=-1.0).seed is None


@pytest.mark.parametrize(
    ("written", "meant"), [("PNG", "png"), ("jpg", "jpeg"), ("JPG", "jpeg"), ("JPEG", "jpeg"), ("WebP", "webp")]
)
def test_a_format_may_be_written_in_another_way(written: str, meant: str) -> None:
    assert parse(output_format=written).output_format == meant


def test_the_image_may_be_a_files_bytes() -> None:
    request = EditRequest(image=b"\xff\xd8 a file", prompt="make it snow")
    assert request.image == b"\xff\xd8 a file"
    assert "file" not in repr(request)
    assert "xff" not in repr(request)
    assert EditRequest.model_validate_json(request.model_dump_json()).image == "_9ggYSBmaWxl"


NOT_INTEGERS: list[object] = [True, False, 8.5, "8", "", [8], {"a": 8}, math.nan, math.inf]
BAD: dict[str, list[object]] = {
    "image": ["", b"", 3, True, ["aGVsbG8="] * 2, [3], [["aGVsbG8="]], {"url": "x"}, "\ud800", bytearray(b"x")],
    "prompt": ["", " \n\t", "x" * 4001, "nul\0", "lone \ud800", 3, True, ["x"], {"text": "x"}],
    "negative_prompt": ["x" * 4001, "nul\0", "lone \udfff", 3, False, ["x"]],
    "rank": [*NOT_INTEGERS, 128.5, "128", 0, 16, 127, 256, -128],
    "steps": [*NOT_INTEGERS, 0, 1, 5, 7, 9, 19, 51, -8, 10**6],
    "num_inference_steps": [*NOT_INTEGERS, 0, 9, 51],
    "true_cfg_scale": [True, "4", "NaN", [4], math.nan, math.inf, -math.inf, 0, 0.99, 20.01, -4, 10**400],
    "seed": [*NOT_INTEGERS, -2, 2**63, 2**64, 10**5000],
    "num_images": [*NOT_INTEGERS, 0, 5],
    "output_format": ["gif", "image/png", " png", "", 3, True, ["png"]],
    "output_quality": [*NOT_INTEGERS, 0, 101],
    "return": ["URL", "", "path", 3, True, ["url"]],
    "return_as": ["URL", "", 3],
    "preview": [0, 1, "true", "", [True], 1.0],
}


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(name, value, id=name) for name, values in BAD.items() for value in values]
)
def test_any_other_value_is_refused_with_the_name_of_its_field(name: str, value: object) -> None:
    assert refusal(**{name: value}).startswith(f"{name} is ")


@pytest.mark.parametrize("value", [*NOT_INTEGERS, 255, 2049, 0, -512])
@pytest.mark.parametrize(("name", "other"), [("width", "height"), ("height", "width")])
def test_a_side_out_of_range_is_refused(name: str, other: str, value: object) -> None:
    assert refusal(**{name: value, other: 512}).startswith(f"{name} is ")


@pytest.mark.parametrize(("width", "height"), [(256, 2048), (2048, 256), (777, 1000)])
def test_sides_are_kept_as_they_were_asked_for(width: int, height: int) -> None:
    request = parse(width=width, height=height)
    assert (request.width, request.height) == (width, height)


@pytest.mark.parametrize(("alone", "other"), [("width", "height"), ("height", "width")])
def test_one_side_alone_is_refused(alone: str, other: str) -> None:
    assert refusal(**{alone: 512}) == f"{alone} is 512 without {other}, expected both or neither"
    assert refusal(**{alone: 512, other: None}) == refusal(**{alone: 512})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"steps": 9}, "steps is 9, expected an integer out of 4, 8, 20 to 50"),
        ({"num_inference_steps": 9}, "num_inference_steps is 9, expected an integer out of 4, 8, 20 to 50"),
        ({"rank": 16}, "rank is 16, expected the integer 128 (32 and 64 run as 128)"),
        ({"num_images": True}, "num_images is true, expected an integer from 1 to 4"),
        ({"output_format": "GIF"}, "output_format is 'GIF', expected 'png', 'jpeg', 'webp' or 'auto'"),
        ({"return": "link"}, "return is 'link', expected 'base64' or 'url'"),
        ({"preview": 1}, "preview is 1, expected true or false"),
        ({"true_cfg_scale": [1, 2]}, "true_cfg_scale is a list of 2, expected a number from 1 to 20"),
    ],
)
def test_a_refusal_says_what_was_given_and_what_was_expected(fields: dict[str, object], sentence: str) -> None:
    assert refusal(**fields) == sentence


def test_every_wrong_field_is_in_the_sentence() -> None:
    sentence = refusal(rank=1, steps="8", seed=1.5)
    assert [part.split()[0] for part in sentence.split("; ")] == ["rank", "steps", "seed"]


def test_a_long_value_is_not_repeated() -> None:
    assert refusal(prompt="lorem " * 1000).startswith("prompt is a string of 6,000 characters, ")
    assert refusal(seed=10**5000).startswith("seed is an integer of more than 64 bits, ")


def test_the_prompt_is_trimmed() -> None:
    assert parse(prompt=" \n make it snow\t").prompt == "make it snow"
    assert parse(prompt="x" * 4000 + " ").prompt == "x" * 4000


def test_seed_minus_one_is_any_seed() -> None:
    assert parse(seed=-1).seed is None


def test_steps_has_a_second_name() -> None:
    assert parse(num_inference_steps=20) == parse(steps=20)
    assert parse(num_inference_steps=20, steps=20) == parse(steps=20)
    assert parse(num_inference_steps=20, steps=None) == parse(steps=20)


def test_two_step_counts_are_refused() -> None:
    expected = "steps is 8 and num_inference_steps is 20, expected one of them or the same"
    assert refusal(steps=8, num_inference_steps=20) == expected
    assert "is true" in refusal(steps=1, num_inference_steps=True)


def test_return_has_a_second_name_that_python_can_say() -> None:
    assert EditRequest(image="aGVsbG8=", prompt="make it snow", return_as="url") == parse(**{"return": "url"})
    assert parse(**{"return": "url", "return_as": "url"}).return_as == "url"
    expected = "return_as is 'url' and return is 'base64', expected one of them or the same"
    assert refusal(**{"return": "base64", "return_as": "url"}) == expected


def test_an_unknown_field_is_named_with_the_closest_known_one() -> None:
    assert refusal(stpes=8) == "'stpes' is not a field, the closest is steps"
    assert refusal(promt="x") == "'promt' is not a field, the closest is prompt"
    assert refusal(inference_steps=8) == "'inference_steps' is not a field, the closest is num_inference_steps"
    assert refusal(retrun="url") == "'retrun' is not a field, the closest is return"


def test_several_unknown_fields_are_each_named() -> None:
    sentence = refusal(widht=512, heigth=512)
    assert sentence == "'widht' is not a field, the closest is width; 'heigth' is not a field, the closest is height"


def test_many_and_long_unknown_fields_make_a_short_sentence() -> None:
    assert len(refusal(**{f"{i}" * 10_000: i for i in range(100)})) < 600


@pytest.mark.parametrize("name", ["", "\0", "\ud800", "self", "cls", "fields", "model_config", "__init__", "image "])
def test_a_strange_field_name_is_refused(name: str) -> None:
    assert "is not a field" in refusal(**{name: 1})


@pytest.mark.parametrize("payload", [None, [], "image", 3, 1.5, True, math.nan, {1: 2}, {None: 1}, {b"image": 1}])
def test_an_input_that_is_no_object_of_fields_is_refused(payload: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^invalid_request: input (is|has) "):
        EditRequest.parse(payload)


def test_the_constructor_refuses_as_parse_does() -> None:
    with pytest.raises(InvalidRequest, match="prompt is ''"):
        EditRequest(image="aGVsbG8=", prompt="")
    with pytest.raises(InvalidRequest, match="prompt is missing"):
        EditRequest.model_validate({"image": "aGVsbG8="})


def test_the_image_is_in_no_text_made_from_the_request() -> None:
    assert "aGVsbG8=" not in repr(parse())
    assert "aGVsbG8=" not in refusal(prompt="")


def outcome(payload: object) -> str:
    """The request without its image, or the sentence of the refusal."""
    try:
        request = EditRequest.parse(payload)
    except InvalidRequest as error:
        return error.sentence
    return request.model_dump_json(exclude={"image"})


@given(ANY_JSON)
def test_any_input_is_a_request_or_an_invalid_request(payload: object) -> None:
    assert outcome(payload).encode()


@settings(max_examples=300)
@given(
    image=st.text("ABCabc+/\ud800", min_size=12, max_size=60),
    fields=st.dictionaries(st.sampled_from(FIELDS[1:]) | ANY_TEXT, ANY_JSON, max_size=5),
)
def test_any_fields_are_a_request_or_a_sentence_without_the_image(image: str, fields: dict[str, object]) -> None:
    answer = outcome({"prompt": "make it snow", **fields, "image": image})
    assert image not in answer
    assert ascii(image)[1:-1] not in answer


def test_a_response_is_json_under_the_names_of_the_contract() -> None:
    response = a_response().to_json()
    assert list(response) == [
        *("image", "images", "format", "width", "height", "seed", "model_config", "timings", "warnings"),
    ]
    assert json.loads(json.dumps(response, allow_nan=False)) == response


def test_a_response_with_urls_has_no_pictures_not_even_null() -> None:
    response = a_response(**URLS).to_json()
    assert list(response)[:3] == ["url", "urls", "format"]
    assert "image" not in response
    assert "images" not in response


@pytest.mark.parametrize("pictures", [{"url": None}, {**PICTURES, **URLS}, {"image": "aGVsbG8="}, {"urls": []}])
def test_a_response_has_pictures_or_urls(pictures: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected image and images, or url and urls"):
        a_response(**pictures)


def test_a_scheduler_keeps_the_types_of_its_values() -> None:
    scheduler = json.dumps(a_response().to_json()["model_config"]["scheduler"])  # type: ignore[index]
    expected = {"shift": 1.0, "shift_terminal": None, "use_dynamic_shifting": True, "base_image_seq_len": 256}
    assert scheduler == json.dumps(expected)


def test_timings_have_every_stage_of_the_contract() -> None:
    assert list(Timings.model_fields) == [
        *("queue", "load", "decode", "prompt", "vae_encode", "denoise", "vae_decode", "encode", "total", "cold"),
        "start",
    ]


def test_a_response_does_not_print_its_pictures() -> None:
    assert "aGVsbG8=" not in repr(a_response())
    assert "example.com" not in repr(a_response(**URLS))
