import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse, ModelInfo, Timings
from qwen_edit.edit.bucket import Bucket
from qwen_edit.edit.fitting import (
    UNLIMITED,
    Delivery,
    Encoded,
    Reply,
    fit,
    limit_for,
    require_bucket,
    safe_name,
    size_of,
)
from qwen_edit.errors import InvalidRequest, OutputTooLarge
from qwen_edit.pictures import write
from qwen_edit.settings import Settings
from tests.support.object_store import ObjectStore, download, object_store

MODEL = ModelInfo(
    worker_version="0.1.0",
    base_model="Qwen/Qwen-Image-Edit",
    checkpoint="checkpoint.safetensors",
    repository=None,
    revision=None,
    sha256=None,
    precision="int4",
    backend="dense",
    device="cpu",
    dtype="float32",
    rank=128,
    steps=8,
    true_cfg_scale=1.0,
    scheduler={"shift_terminal": None},
    supported_ranks=[128],
    supported_steps=[8],
    default_rank=128,
    default_steps=8,
)
TIMINGS = Timings(
    decode=1.5, prompt=1.5, vae_encode=1.5, denoise=1.5, vae_decode=1.5, encode=1.5, total=9.0, cold=False
)


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture(scope="module")
def pictures(photo: Image.Image) -> list[Image.Image]:
    """Two photos."""
    return [photo, photo.transpose(Image.Transpose.ROTATE_90)]


def ask(**fields: object) -> EditRequest:
    return EditRequest.parse({"image": "aGVsbG8=", "prompt": "make it snow", **fields})


def compose(encoded: Encoded) -> EditResponse:
    inline = [write.to_base64(data) for data in encoded.files]
    urls = list(encoded.urls)
    return EditResponse(
        **({"url": urls[0], "urls": urls} if urls else {"image": inline[0], "images": inline}),
        format=encoded.format,
        width=451,
        height=300,
        seed=7,
        model_info=MODEL,
        timings=TIMINGS,
        warnings=["451 × 300 pixels", *encoded.warnings],
    )


def reply_to(
    pictures: list[Image.Image], limit: int | None = None, bucket: Bucket | None = None, **fields: object
) -> Reply:
    return fit(pictures, ask(**fields), Delivery(limit, bucket, "job/1"), compose)


def body(reply: Reply) -> bytes:
    """What RunPod's SDK posts."""
    return json.dumps({"output": reply.response.to_json()}, ensure_ascii=False).encode()


def decoded(data: bytes) -> tuple[str | None, np.ndarray]:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.format, np.asarray(picture.convert("RGB"))


def test_what_fits_is_sent_as_it_was_asked_for(pictures: list[Image.Image]) -> None:
    for output_format in ("png", "jpeg", "webp", "auto"):
        reply = fit(pictures, ask(output_format=output_format, output_quality=70), UNLIMITED, compose)

        expected = "png" if output_format == "auto" else output_format
        assert reply.encoded.format == reply.response.format == expected
        assert list(reply.encoded.files) == [write.encode(picture, expected, 70) for picture in pictures]
        assert reply.response.images == [write.to_base64(data) for data in reply.encoded.files]
        assert reply.encoded.warnings == ()


def test_the_size_is_that_of_the_body_that_is_posted(pictures: list[Image.Image], store: ObjectStore) -> None:
    replies = [reply_to(pictures[:count]) for count in (1, 2)]
    by_url: dict[str, Any] = {"return": "url"}
    replies.append(reply_to(pictures, bucket=Bucket(store.settings), **by_url))

    for reply in replies:
        assert size_of(reply.response) == len(body(reply))


def test_a_limit_is_kept_to_the_byte(pictures: list[Image.Image]) -> None:
    asked = reply_to(pictures)
    size = size_of(asked.response)

    assert reply_to(pictures, limit=size).encoded == asked.encoded
    assert size_of(reply_to(pictures, limit=size - 1).response) < size


def test_a_png_is_made_smaller_without_losing_anything(pictures: list[Image.Image]) -> None:
    size = size_of(reply_to(pictures).response)

    reply = reply_to(pictures, limit=size - 1)

    assert reply.encoded.warnings == ()
    for data, picture in zip(reply.encoded.files, pictures, strict=True):
        file_format, pixels = decoded(data)
        assert file_format == "PNG"
        assert np.array_equal(pixels, np.asarray(picture))


def test_auto_goes_through_webp_and_jpeg_down_to_quality_80_and_names_each(pictures: list[Image.Image]) -> None:
    """Whatever the limit, the reply keeps it; the ways that it takes are these, in this order."""
    limit, seen = 10**9, []
    try:
        while True:
            reply = reply_to(pictures, limit=limit, output_format="auto")
            size = size_of(reply.response)
            assert size <= limit
            assert {decoded(data)[0] for data in reply.encoded.files} == {reply.encoded.format.upper()}
            seen.append(reply.response.warnings[1:])
            limit = size - 100  # the sentence with the limit becomes shorter, too
    except OutputTooLarge:
        pass

    names = [warning[0].split(", because")[0] for warning in seen[1:]]
    assert seen[0] == []
    assert names == [
        "the result is a lossless WebP",
        "the result is a WebP of quality 95",
        "the result is a WebP of quality 90",
        "the result is a WebP of quality 80",
    ]
    assert "because as PNG it did not fit a reply of " in seen[1][0]


def test_auto_takes_a_jpeg_where_it_is_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    pictures = [Image.fromarray(noise)]
    webp = reply_to(pictures, output_format="webp", output_quality=50)

    reply = reply_to(pictures, size_of(webp.response) - 1, output_format="auto", output_quality=50)

    assert reply.response.format == "jpeg"
    assert decoded(reply.encoded.files[0])[0] == "JPEG"
    assert reply.response.warnings[1].startswith("the result is a JPEG of quality 50, because as PNG it did not fit")


def test_the_lossless_webp_has_the_same_pixels(pictures: list[Image.Image]) -> None:
    reply = reply_to(pictures, limit=size_of(reply_to(pictures).response) - 1, output_format="auto")

    assert [decoded(data)[0] for data in reply.encoded.files] == ["WEBP", "WEBP"]
    for data, picture in zip(reply.encoded.files, pictures, strict=True):
        assert np.array_equal(decoded(data)[1], np.asarray(picture))


def test_auto_goes_below_80_only_where_that_was_asked_for(pictures: list[Image.Image]) -> None:
    reply = reply_to(pictures, limit=25_000, output_format="auto", output_quality=10)
    with pytest.raises(OutputTooLarge):
        reply_to(pictures, limit=25_000, output_format="auto", output_quality=95)

    assert reply.response.warnings[1].startswith("the result is a WebP of quality 10, because")


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_format_that_was_asked_for_by_name_stays(pictures: list[Image.Image], output_format: str) -> None:
    with pytest.raises(OutputTooLarge):
        reply_to(pictures, limit=20_000, output_format=output_format)


@pytest.mark.parametrize(
    ("fields", "ways"),
    [
        ({}, "output_format 'auto', 'webp' or 'jpeg' or a smaller width and height"),
        ({"output_format": "auto", "num_images": 2}, "a lower output_quality, fewer num_images or a smaller width"),
        ({"output_format": "jpeg"}, "a lower output_quality or a smaller width and height"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sizes_and_the_ways_out(
    pictures: list[Image.Image], fields: dict[str, Any], ways: str
) -> None:
    with pytest.raises(OutputTooLarge) as caught:
        reply_to(pictures, limit=12_345, **fields)

    sentence = caught.value.sentence
    smallest = int(sentence.removeprefix("the reply has ").split()[0].replace(",", ""))
    assert smallest > 12_345
    assert f"bytes at its smallest, expected at most 12,345: ask for {ways}" in sentence
    assert sentence.endswith(", or return 'url' from a worker with a bucket")


def test_the_smallest_size_that_is_named_is_the_one_that_would_fit(pictures: list[Image.Image]) -> None:
    with pytest.raises(OutputTooLarge) as caught:
        reply_to(pictures, limit=1)
    smallest = int(caught.value.sentence.removeprefix("the reply has ").split()[0].replace(",", ""))

    assert size_of(reply_to(pictures, limit=smallest).response) == smallest < size_of(reply_to(pictures).response)


def test_what_does_not_fit_goes_into_the_bucket_as_it_was_asked_for(
    pictures: list[Image.Image], store: ObjectStore
) -> None:
    reply = reply_to(pictures, 20_000, Bucket(store.settings))

    assert size_of(reply.response) == len(body(reply)) <= 20_000
    assert reply.response.images is None
    assert reply.response.url == (reply.response.urls or [])[0]
    expected = [(write.encode(picture, "png", 95), "image/png") for picture in pictures]
    assert [download(url) for url in reply.response.urls or []] == expected
    assert reply.response.warnings[1:] == [
        "the result is returned as URLs, which work for 24 hours, because as PNG it did not fit a reply of 20,000 bytes"
    ]


def test_a_url_that_was_asked_for_is_returned_without_a_warning(
    pictures: list[Image.Image], store: ObjectStore
) -> None:
    reply = reply_to(pictures, 10**9, Bucket(store.settings), output_format="webp", **{"return": "url"})

    assert reply.response.warnings[1:] == []
    assert "image" not in reply.response.to_json()
    assert [download(url)[1] for url in reply.response.urls or []] == ["image/webp", "image/webp"]
    assert [download(url)[0] for url in reply.response.urls or []] == list(reply.encoded.files)


def test_nothing_is_uploaded_that_fits(pictures: list[Image.Image], store: ObjectStore) -> None:
    before = store.names()

    assert reply_to(pictures, 10**9, Bucket(store.settings)).response.urls is None
    assert store.names() == before


def test_a_name_in_the_bucket_cannot_be_guessed_or_chosen(pictures: list[Image.Image], store: ObjectStore) -> None:
    first, second = (reply_to(pictures, None, Bucket(store.settings), return_as="url") for _ in range(2))

    paths = [url.split("?")[0].removeprefix(f"{store.settings.endpoint_url}/edits/") for url in first.encoded.urls]
    folder, job, file = paths[0].split("/")
    assert (folder, file) == ("qwen-edit", "0.png")
    assert job.startswith("job_1-")
    assert len(job.removeprefix("job_1-")) == 22  # 16 random bytes
    assert paths[1] == f"qwen-edit/{job}/1.png"
    assert job not in second.encoded.urls[0]


def test_a_url_without_a_bucket_is_refused_and_never_a_path(pictures: list[Image.Image]) -> None:
    request = ask(**{"return": "url"})
    sentence = "return is 'url', but this worker has no bucket"

    with pytest.raises(InvalidRequest, match=sentence):
        require_bucket(request, Settings().bucket)
    with pytest.raises(InvalidRequest, match=sentence):
        fit(pictures, request, UNLIMITED, compose)
    require_bucket(ask(), None)


@pytest.mark.parametrize(
    ("job_id", "max_payload_mb", "limit"),
    [
        ("sync-79164ff4-d212-44bc-9fe3-389e199a5c15", None, 20_000_000),
        ("eaebd6e7-6a92-4bb8-a911-f996ac5ea99d", None, 10_000_000),
        ("local_test", None, 10_000_000),
        ("sync-1", 3, 3_000_000),
        ("1", 30, 30_000_000),
    ],
)
def test_the_limit_goes_by_the_kind_of_job_or_by_the_setting(
    job_id: str, max_payload_mb: int | None, limit: int
) -> None:
    assert limit_for(job_id, Settings(max_payload_mb=max_payload_mb)) == limit


@pytest.mark.parametrize("job_id", ["../../etc/passwd", "a/b\\c", "ü\0\n", "", "x" * 5000])
def test_a_name_made_of_a_job_is_safe(job_id: str) -> None:
    name = safe_name(job_id)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz_-")
    assert len(name) <= 100


def test_the_smaller_files_are_smaller_and_of_the_same_pixels(photo: Image.Image) -> None:
    plain = write.encode(photo, "png", 95)

    for output_format in ("png", "webp"):
        smaller = write.encode_smaller(photo, output_format)
        assert len(smaller) < len(plain)
        assert decoded(smaller)[0] == output_format.upper()
        assert np.array_equal(decoded(smaller)[1], np.asarray(photo))


def test_the_pictures_in_a_response_are_the_files(pictures: list[Image.Image]) -> None:
    reply = reply_to(pictures)

    assert [base64.b64decode(image) for image in reply.response.images or []] == list(reply.encoded.files)
