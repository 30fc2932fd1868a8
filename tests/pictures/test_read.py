import base64
import io
import random
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageChops, ImageStat

from qwen_edit.contract.response import OutputFormat
from qwen_edit.errors import ImageTooLarge, InvalidImage, InvalidRequest
from qwen_edit.pictures import read, write
from tests.support.pictures import (
    FLAG,
    assert_close,
    corners,
    file_of,
    flag,
    frames_of,
    photo,
    png,
    read_corners,
)

PICTURE = file_of(flag(), "PNG")
PLAIN = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PLAIN, id="standard"),
        pytest.param(base64.urlsafe_b64encode(PICTURE).decode(), id="urlsafe"),
        pytest.param(base64.encodebytes(PICTURE).decode().replace("\n", "\r\n\t "), id="lines"),
        pytest.param(f"  {PLAIN}\n", id="white space around"),
        pytest.param(PLAIN.rstrip("="), id="no padding"),
        pytest.param(f"data:image/png;base64,{PLAIN}", id="data URI"),
        pytest.param(f" DATA:IMAGE/PNG;charset=utf-8;BASE64 ,\n{PLAIN}", id="data URI with parameters"),
        pytest.param(f"data:;base64,{PLAIN}", id="data URI without a type"),
        pytest.param(f"data:image/jpeg;base64,{PLAIN}", id="data URI with a false type"),
    ],
)
def test_every_way_to_write_base64_is_read(text: str) -> None:
    assert corners(read.decode(text).picture) == FLAG


@given(data=st.binary(min_size=1, max_size=200), seed=st.randoms())
def test_base64_in_any_alphabet_with_any_white_space_is_the_same_bytes(data: bytes, seed: random.Random) -> None:
    encode = seed.choice([base64.b64encode, base64.urlsafe_b64encode])
    symbols = list(encode(data).decode().rstrip("=" if seed.random() < 0.5 else ""))
    for _ in range(seed.randrange(5)):
        symbols.insert(seed.randrange(len(symbols) + 1), seed.choice(" \n\r\t"))
    assert read.from_base64("".join(symbols)) == data


@pytest.mark.parametrize(
    "text",
    ["a", "!!!!", "abc=defg", "aGVsbG8*", "é" * 8, "\ud800", "\0", "data:image/png;base64,a", "file:///etc/passwd"],
)
def test_text_that_is_not_base64_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InvalidImage, match="not base64") as caught:
        read.decode(text)
    assert len(text) < 3 or text not in caught.value.sentence


@pytest.mark.parametrize("text", [" ", "=", "====", "data:image/png;base64,"])
def test_empty_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidImage, match="image is empty"):
        read.decode(text)


@pytest.mark.parametrize("text", ["data:image/svg+xml,<svg/>", "data:,hello", "data:"])
def test_a_data_uri_without_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidImage, match="data URI without ;base64"):
        read.decode(text)


@pytest.mark.parametrize("url", ["http://example.com/a.png", " HTTPS://example.com/a.png", "https://"])
def test_a_url_is_refused_with_the_setting_that_decides(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"URLs are not accepted by this worker .*QWEN_EDIT_ALLOW_URLS"):
        read.decode(url)


def test_base64_out_of_the_encoder_is_read_back() -> None:
    assert read.from_base64(write.to_base64(bytes(range(256)))) == bytes(range(256))


def test_base64_of_more_than_20_megabytes_is_refused_before_it_is_decoded() -> None:
    too_long = "!" * (read.MAX_BYTES * 4 // 3 + 4)
    with pytest.raises(ImageTooLarge, match="expected at most 20,000,000"):
        read.decode(too_long)


def test_white_space_does_not_count_as_file() -> None:
    assert read.decode(PLAIN + " " * (read.MAX_BYTES * 4 // 3)).picture.size == (48, 32)


def test_a_file_of_more_than_20_megabytes_is_refused() -> None:
    read.read(PICTURE.ljust(read.MAX_BYTES, b"\0"))
    with pytest.raises(ImageTooLarge, match="20,000,001 bytes"):
        read.read(PICTURE.ljust(read.MAX_BYTES + 1, b"\0"))


@pytest.mark.parametrize(
    ("width", "height"), [(10_000, 5001), (9000, 11_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
def test_more_than_50_megapixels_are_refused_from_the_header_alone(width: int, height: int) -> None:
    with pytest.raises(ImageTooLarge, match=r"50 mega|50 million"):
        read.read(png(width, height, (b"IDAT", b"")))


def test_50_megapixels_are_not_too_many() -> None:
    with pytest.raises(InvalidImage, match="damaged"):
        read.read(png(10_000, 5000, (b"IDAT", b"")))


@pytest.mark.parametrize("size", [(80, 10), (10, 80), (1, 8), (1, 1)])
def test_a_longer_side_of_8_times_the_shorter_is_accepted(size: tuple[int, int]) -> None:
    assert read.read(file_of(Image.new("RGB", size), "PNG")).picture.size == size


@pytest.mark.parametrize("size", [(81, 10), (10, 81), (1, 9)])
def test_a_longer_side_of_more_than_8_times_the_shorter_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match=f"{size[0]} × {size[1]} pixels, expected a longer side of at most 8 times"):
        read.read(file_of(Image.new("RGB", size), "PNG"))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage):
        read.read(png(*size, (b"IDAT", zlib.compress(b""))))


@pytest.mark.parametrize("file_format", ["PPM", "ICO", "TGA", "JPEG2000", "AVIF", "PDF"])
def test_another_format_is_refused(file_format: str) -> None:
    with pytest.raises(InvalidImage, match="not a PNG, JPEG, WebP, BMP, GIF or TIFF picture"):
        read.read(file_of(flag(), file_format))


@pytest.mark.parametrize(
    "data", [b"\0", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"\xff\xd8\xff"]
)
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        read.read(data)


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("JPEG", {"quality": 100, "subsampling": 0}, 2),
        ("JPEG", {"quality": 100, "subsampling": 0, "progressive": True}, 2),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 100}, 12),
        ("BMP", {}, 0),
        ("GIF", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, 0),
    ],
)
def test_every_format_is_read_by_its_content(file_format: str, options: dict[str, object], tolerance: int) -> None:
    assert_close(read_corners(file_of(flag(), file_format, **options)), FLAG, tolerance)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_the_right_way_up(file_format: str, orientation: int) -> None:
    # What turns the flag into the stored picture: the inverse of what a reader has to do.
    T = Image.Transpose  # noqa: N806
    store = {
        2: T.FLIP_LEFT_RIGHT,
        3: T.ROTATE_180,
        4: T.FLIP_TOP_BOTTOM,
        5: T.TRANSPOSE,
        6: T.ROTATE_90,
        7: T.TRANSVERSE,
        8: T.ROTATE_270,
    }
    stored = flag() if orientation == 1 else flag().transpose(store[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exact: dict[str, dict[str, int]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    decoded = read.read(file_of(stored, file_format, exif=exif, **exact.get(file_format, {})))
    assert decoded.picture.size == (48, 32)
    assert_close(corners(decoded.picture), FLAG, 2)


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(value: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    assert read_corners(file_of(flag(), "PNG", exif=exif)) == FLAG


@pytest.mark.parametrize("kind", [2, 5, 7, 12])
def test_an_orientation_that_is_no_integer_changes_nothing(kind: int) -> None:
    entry = struct.pack("<HHHIII", 1, ExifTags.Base.Orientation, kind, 1, 8, 0)
    assert read_corners(file_of(flag(), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0" + entry)) == FLAG


def test_damaged_exif_does_not_refuse_the_picture() -> None:
    for body in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + b"\xff" * 40, b"garbage"):
        assert corners(read.read(file_of(flag(), "PNG", exif=body)).picture) == FLAG


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_used_with_a_warning(file_format: str) -> None:
    decoded = read.read(frames_of(file_format))
    assert_close(corners(decoded.picture), FLAG, 40)
    assert decoded.warnings == ("image has 3 frames, of which the first is used",)


def test_the_pages_of_a_tiff_are_counted_up_to_a_thousand() -> None:
    # Every page after the first is the same directory again, which costs 66 bytes instead of a picture.
    data = bytearray(file_of(Image.new("L", (8, 8)), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    end = first + 2 + 12 * entries
    page = bytes(data[first:end])
    struct.pack_into("<I", data, end, len(data))
    for index in range(1200):
        data += page + struct.pack("<I", len(data) + len(page) + 4 if index < 1199 else 0)
    assert read.read(bytes(data)).warnings == ("image has at least 1,000 frames, of which the first is used",)


def test_the_previews_in_a_phone_photo_are_no_frames() -> None:
    decoded = read.read(frames_of("MPO"))
    assert_close(corners(decoded.picture), FLAG, 60)
    assert decoded.warnings == ()


def test_a_large_jpeg_is_decoded_small_and_everything_else_as_it_is() -> None:
    large = flag(4000, 3000)
    decoded = read.read(file_of(large, "JPEG"))
    assert decoded.picture.size == (2000, 1500)
    assert_close(corners(decoded.picture), FLAG, 4)
    assert read.read(file_of(large, "PNG", compress_level=1)).picture.size == (4000, 3000)
    assert read.read(file_of(flag(1600, 1200), "JPEG")).picture.size == (1600, 1200)


def test_a_large_jpeg_on_its_side_is_decoded_small_and_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = flag(3000, 4000).transpose(Image.Transpose.ROTATE_90)
    decoded = read.read(file_of(stored, "JPEG", exif=exif))
    assert decoded.picture.size == (1500, 2000)
    assert_close(corners(decoded.picture), FLAG, 4)


def difference(picture: Image.Image, data: bytes) -> float:
    """Mean difference of the channels, in steps of 255."""
    with Image.open(io.BytesIO(data)) as decoded:
        return sum(ImageStat.Stat(ImageChops.difference(picture, decoded.convert("RGB"))).mean) / 3


@pytest.mark.parametrize(("output_format", "allowed"), [("png", 0.0), ("jpeg", 3.0), ("webp", 3.0)])
def test_what_is_encoded_decodes_to_the_same_picture(output_format: OutputFormat, allowed: float) -> None:
    picture = photo(320, 208)
    data = write.encode(picture, output_format, 95)
    with Image.open(io.BytesIO(data)) as decoded:
        assert (decoded.format, decoded.size, decoded.mode) == (output_format.upper(), (320, 208), "RGB")
    assert difference(picture, data) <= allowed


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_higher_quality_is_more_bytes_and_less_difference(output_format: OutputFormat) -> None:
    picture = photo(320, 208)
    files = [write.encode(picture, output_format, quality) for quality in (1, 50, 89, 90, 100)]
    differences = [difference(picture, data) for data in files]
    for (smaller, larger), (more, less) in zip(pairwise(files), pairwise(differences), strict=True):
        assert len(smaller) < len(larger)
        assert more > less


def sampling(data: bytes) -> list[tuple[int, int, int]]:
    with Image.open(io.BytesIO(data)) as decoded:
        return [(horizontal, vertical, 0) for _, horizontal, vertical, _ in decoded.layer]  # type: ignore[attr-defined]


def test_a_jpeg_keeps_all_of_its_colour_from_quality_90_on() -> None:
    assert sampling(write.encode(photo(), "jpeg", 90)) == [(1, 1, 0)] * 3
    assert sampling(write.encode(photo(), "jpeg", 89))[0] == (2, 2, 0)


def test_the_quality_does_not_change_a_png() -> None:
    assert write.encode(photo(), "png", 1) == write.encode(photo(), "png", 100)


ENCODINGS: list[Callable[[Image.Image], bytes]] = [
    lambda picture: write.encode(picture, "png", 95),
    lambda picture: write.encode(picture, "jpeg", 95),
    lambda picture: write.encode(picture, "webp", 95),
]


@pytest.mark.parametrize("encode", ENCODINGS)
def test_the_same_picture_gives_the_same_bytes(encode: Callable[[Image.Image], bytes]) -> None:
    assert encode(photo()) == encode(photo())
