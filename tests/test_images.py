import base64
import io
import itertools
import random
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps, ImageStat

from qwen_edit import images
from qwen_edit.errors import EditError, ImageTooLarge, InvalidImage, InvalidRequest

PHOTOS = Path(__file__).parent / "photos"
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
FLAG = (RED, GREEN, BLUE, YELLOW)
"""Top left, top right, bottom left, bottom right."""

Colour = tuple[int, int, int]


def flag(width: int = 48, height: int = 32) -> Image.Image:
    """Four colours in the four quarters, so that every orientation and channel order shows."""
    picture = Image.new("RGB", (width, height))
    for index, colour in enumerate(FLAG):
        picture.paste(colour, (index % 2 * width // 2, index // 2 * height // 2, width, height))
    return picture


def file_of(picture: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.copy().save(buffer, file_format, **options)
    return buffer.getvalue()


def frames_of(file_format: str, count: int = 3) -> bytes:
    others = [Image.new("RGB", (48, 32), (40 * i, 0, 90)) for i in range(1, count)]
    return file_of(flag(), file_format, save_all=True, append_images=others)


def corners(picture: Image.Image) -> tuple[Colour, ...]:
    """The colours in the middle of the four quarters, in the order of `FLAG`."""
    width, height = picture.size
    spots = [(x, y) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]
    return tuple(picture.getpixel(spot) for spot in spots)  # type: ignore[misc]


def assert_close(seen: tuple[Colour, ...], expected: tuple[Colour, ...], tolerance: int = 0) -> None:
    pairs = zip(itertools.chain(*seen), itertools.chain(*expected), strict=True)
    assert all(abs(a - b) <= tolerance for a, b in pairs), (seen, expected)


def read_corners(data: bytes) -> tuple[Colour, ...]:
    decoded = images.read(data)
    assert decoded.picture.mode == "RGB"
    assert decoded.warnings == ()
    return corners(decoded.picture)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, colour_type: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        parts.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(parts)


# ---- base64

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
    assert corners(images.decode(text).picture) == FLAG


@given(data=st.binary(min_size=1, max_size=200), seed=st.randoms())
def test_base64_in_any_alphabet_with_any_white_space_is_the_same_bytes(data: bytes, seed: random.Random) -> None:
    encode = seed.choice([base64.b64encode, base64.urlsafe_b64encode])
    symbols = list(encode(data).decode().rstrip("=" if seed.random() < 0.5 else ""))
    for _ in range(seed.randrange(5)):
        symbols.insert(seed.randrange(len(symbols) + 1), seed.choice(" \n\r\t"))
    assert images.from_base64("".join(symbols)) == data


@pytest.mark.parametrize(
    "text",
    ["a", "!!!!", "abc=defg", "aGVsbG8*", "é" * 8, "\ud800", "\0", "data:image/png;base64,a", "file:///etc/passwd"],
)
def test_text_that_is_not_base64_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InvalidImage, match="not base64") as caught:
        images.decode(text)
    assert len(text) < 3 or text not in caught.value.sentence


@pytest.mark.parametrize("text", [" ", "=", "====", "data:image/png;base64,"])
def test_empty_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidImage, match="image is empty"):
        images.decode(text)


@pytest.mark.parametrize("text", ["data:image/svg+xml,<svg/>", "data:,hello", "data:"])
def test_a_data_uri_without_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidImage, match="data URI without ;base64"):
        images.decode(text)


@pytest.mark.parametrize("url", ["http://example.com/a.png", " HTTPS://example.com/a.png", "https://"])
def test_a_url_is_refused_with_the_setting_that_decides(url: str) -> None:
    with pytest.raises(InvalidRequest, match="URLs are not accepted by this worker .*QWEN_EDIT_ALLOW_URLS"):
        images.decode(url)


def test_base64_out_of_the_encoder_is_read_back() -> None:
    assert images.from_base64(images.to_base64(bytes(range(256)))) == bytes(range(256))


# ---- limits


def test_base64_of_more_than_20_megabytes_is_refused_before_it_is_decoded() -> None:
    too_long = "!" * (images.MAX_BYTES * 4 // 3 + 4)
    with pytest.raises(ImageTooLarge, match="expected at most 20,000,000"):
        images.decode(too_long)


def test_white_space_does_not_count_as_file() -> None:
    assert images.decode(PLAIN + " " * (images.MAX_BYTES * 4 // 3)).picture.size == (48, 32)


def test_a_file_of_more_than_20_megabytes_is_refused() -> None:
    images.read(PICTURE.ljust(images.MAX_BYTES, b"\0"))
    with pytest.raises(ImageTooLarge, match="20,000,001 bytes"):
        images.read(PICTURE.ljust(images.MAX_BYTES + 1, b"\0"))


@pytest.mark.parametrize(
    ("width", "height"), [(10_000, 5001), (9000, 11_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
def test_more_than_50_megapixels_are_refused_from_the_header_alone(width: int, height: int) -> None:
    with pytest.raises(ImageTooLarge, match=r"50 mega|50 million"):
        images.read(png(width, height, (b"IDAT", b"")))


def test_50_megapixels_are_not_too_many() -> None:
    with pytest.raises(InvalidImage, match="damaged"):
        images.read(png(10_000, 5000, (b"IDAT", b"")))


@pytest.mark.parametrize("size", [(80, 10), (10, 80), (1, 8), (1, 1)])
def test_a_longer_side_of_8_times_the_shorter_is_accepted(size: tuple[int, int]) -> None:
    assert images.read(file_of(Image.new("RGB", size), "PNG")).picture.size == size


@pytest.mark.parametrize("size", [(81, 10), (10, 81), (1, 9)])
def test_a_longer_side_of_more_than_8_times_the_shorter_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match=f"{size[0]} × {size[1]} pixels, expected a longer side of at most 8 times"):
        images.read(file_of(Image.new("RGB", size), "PNG"))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage):
        images.read(png(*size, (b"IDAT", zlib.compress(b""))))


@pytest.mark.parametrize("file_format", ["PPM", "ICO", "TGA", "JPEG2000", "AVIF", "PDF"])
def test_another_format_is_refused(file_format: str) -> None:
    with pytest.raises(InvalidImage, match="not a PNG, JPEG, WebP, BMP, GIF or TIFF picture"):
        images.read(file_of(flag(), file_format))


@pytest.mark.parametrize(
    "data", [b"\0", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"\xff\xd8\xff"]
)
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        images.read(data)


# ---- colours and orientation


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
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(file_format, {})
    decoded = images.read(file_of(stored, file_format, exif=exif, **options))
    assert decoded.picture.size == (48, 32)
    assert_close(corners(decoded.picture), FLAG, 2)


@pytest.mark.parametrize("value", [0, 9, 255, "6", b"\6", (6, 6)])
def test_an_orientation_that_does_not_exist_changes_nothing(value: object) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    assert corners(images.read(file_of(flag(), "PNG", exif=exif.tobytes())).picture) == FLAG


def test_damaged_exif_does_not_refuse_the_picture() -> None:
    for body in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + b"\xff" * 40, b"garbage"):
        assert corners(images.read(file_of(flag(), "PNG", exif=body)).picture) == FLAG


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_is_looked_up(file_format: str, colours: int) -> None:
    two = flag() if colours > 2 else ImageOps.colorize(Image.linear_gradient("L").resize((48, 32)), RED, BLUE)
    picture = two.quantize(colours)
    assert read_corners(file_of(picture, file_format)) == corners(picture.convert("RGB"))


def half_transparent(mode: str) -> Image.Image:
    """The flag, in `mode`, with a fully transparent left and an opaque right half."""
    alpha = Image.new("L", (48, 32), 255)
    alpha.paste(0, (0, 0, 24, 32))
    picture = flag().convert(mode.removesuffix("A"))
    picture.putalpha(alpha)
    assert picture.mode == mode
    return picture


WHITE = (255, 255, 255)


@pytest.mark.parametrize(
    ("file_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("GIF", {}), ("BMP", {})]
)
def test_alpha_is_laid_over_white(file_format: str, options: dict[str, object]) -> None:
    data = file_of(half_transparent("RGBA"), file_format, **options)
    expected = FLAG if file_format == "BMP" else (WHITE, GREEN, WHITE, YELLOW)
    assert read_corners(data) == expected


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_alpha_of_a_grey_is_laid_over_white(file_format: str) -> None:
    grey = corners(flag().convert("L").convert("RGB"))
    assert read_corners(file_of(half_transparent("LA"), file_format)) == (WHITE, grey[1], WHITE, grey[3])


def test_half_of_an_alpha_is_half_white() -> None:
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert_close(read_corners(file_of(picture, "PNG")), ((255, 127, 127),) * 4, 1)


def test_premultiplied_alpha_is_laid_over_white() -> None:
    picture = half_transparent("RGBA").convert("RGBa")
    assert read_corners(file_of(picture, "TIFF")) == (WHITE, GREEN, WHITE, YELLOW)


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(file_format: str) -> None:
    picture = flag().quantize(4)
    data = file_of(picture, file_format, transparency=picture.getpixel((0, 0)))
    assert read_corners(data) == (WHITE, GREEN, BLUE, YELLOW)


def test_alpha_in_a_palette_is_laid_over_white() -> None:
    picture = flag().quantize(4)
    alphas = [255] * 4
    alphas[picture.getpixel((0, 0))] = 0  # type: ignore[index]
    alphas[picture.getpixel((47, 0))] = 128  # type: ignore[index]
    data = file_of(picture, "PNG", transparency=bytes(alphas))
    assert_close(read_corners(data), (WHITE, (127, 255, 127), BLUE, YELLOW), 1)


def test_a_transparent_colour_of_a_png_is_white() -> None:
    assert read_corners(file_of(flag(), "PNG", transparency=RED)) == (WHITE, GREEN, BLUE, YELLOW)
    grey = flag().convert("L")
    expected = corners(grey.convert("RGB"))
    assert read_corners(file_of(grey, "PNG", transparency=grey.getpixel((0, 0)))) == (WHITE, *expected[1:])


def test_one_bit_is_black_and_white() -> None:
    picture = Image.new("1", (8, 8))
    picture.paste(1, (4, 0, 8, 8))
    for file_format in ("PNG", "BMP", "TIFF", "GIF"):
        assert read_corners(file_of(picture, file_format)) == ((0, 0, 0), WHITE, (0, 0, 0), WHITE)
    assert read_corners(file_of(picture, "TIFF", compression="group4")) == ((0, 0, 0), WHITE, (0, 0, 0), WHITE)


def test_grey_is_grey() -> None:
    picture = flag().convert("L")
    for file_format in ("PNG", "BMP", "TIFF", "GIF"):
        assert read_corners(file_of(picture, file_format)) == corners(picture.convert("RGB"))


def greys(mode: str, values: tuple[float, ...]) -> Image.Image:
    picture = Image.new(mode, (8, 8))
    for index, value in enumerate(values):
        picture.paste(value, (index % 2 * 4, index // 2 * 4, index % 2 * 4 + 4, index // 2 * 4 + 4))  # type: ignore[arg-type]
    return picture


def grey(*levels: int) -> tuple[Colour, ...]:
    return tuple((level, level, level) for level in levels)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_a_grey_of_16_bits_is_scaled_and_not_clipped(file_format: str, mode: str) -> None:
    data = file_of(greys(mode, (0, 257, 128 * 257, 65535)), file_format)
    assert read_corners(data) == grey(0, 1, 128, 255)


def test_a_dark_grey_of_16_bits_stays_dark() -> None:
    assert read_corners(file_of(greys("I;16", (0, 100, 200, 255)), "PNG")) == grey(0, 0, 1, 1)


def test_a_big_endian_grey_of_16_bits_is_scaled() -> None:
    assert read_corners(file_of(greys("I;16B", (0, 257, 128 * 257, 65535)), "TIFF")) == grey(0, 1, 128, 255)


def test_a_grey_of_32_bits_is_scaled_by_its_brightest_pixel() -> None:
    assert read_corners(file_of(greys("I", (-5, 0, 2**29, 2**30)), "TIFF")) == grey(0, 0, 128, 255)


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ((0.0, 0.25, 0.5, 1.0), (0, 64, 128, 255)),
        ((0.0, 0.1, 0.2, 0.3), (0, 26, 51, 77)),
        ((-1.0, 1.0, 128.0, 255.0), (0, 1, 128, 255)),
        ((0.0, 257.0, 128 * 257.0, 65535.0), (0, 1, 128, 255)),
        ((0.0, 1e5, 2e5, 4e5), (0, 64, 128, 255)),
        ((0.0, 0.0, 0.0, 0.0), (0, 0, 0, 0)),
    ],
)
def test_a_floating_point_grey_is_scaled(values: tuple[float, ...], levels: tuple[int, ...]) -> None:
    assert_close(read_corners(file_of(greys("F", values), "TIFF")), grey(*levels), 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_floating_point_grey_without_a_range_is_read_or_refused(value: float) -> None:
    try:
        images.read(file_of(greys("F", (0.0, 0.5, 1.0, value)), "TIFF"))
    except InvalidImage:
        pass


def test_colours_of_16_bits_are_scaled() -> None:
    row = b"\0" + b"".join(struct.pack(">HHH", *(channel * 257 for channel in colour)) for colour in FLAG[:2])
    low = b"\0" + b"".join(struct.pack(">HHH", *(channel * 257 for channel in colour)) for colour in FLAG[2:])
    data = png(2, 2, (b"IDAT", zlib.compress(row + low)), bits=16)
    assert images.read(data).picture.tobytes() == flag(2, 2).tobytes()


def test_cmyk_comes_out_in_its_colours() -> None:
    picture = flag().convert("CMYK")
    assert read_corners(file_of(picture, "TIFF")) == FLAG
    assert_close(read_corners(file_of(picture, "JPEG", quality=100, subsampling=0)), FLAG, 3)


def test_ycbcr_comes_out_in_its_colours() -> None:
    assert_close(read_corners(file_of(flag().convert("YCbCr"), "TIFF")), FLAG, 2)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """A profile of a display whose red primary is green and the other way round."""
    profile = SRGB.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    profile = profile.replace(b"rXYZ", b"#", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"#", b"gXYZ", 1)
    assert len(profile) == len(SRGB)
    return profile


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("JPEG", {"quality": 100, "subsampling": 0}), ("WEBP", {"lossless": True}), ("TIFF", {})],
)
def test_an_embedded_profile_is_honoured(file_format: str, options: dict[str, object]) -> None:
    data = file_of(flag(), file_format, icc_profile=swapped_profile(), **options)
    assert_close(read_corners(data), (GREEN, RED, BLUE, YELLOW), 4)


def test_a_profile_is_honoured_below_alpha_and_behind_a_palette() -> None:
    swapped = (GREEN, RED, BLUE, YELLOW)
    transparent = file_of(half_transparent("RGBA"), "PNG", icc_profile=swapped_profile())
    assert_close(read_corners(transparent), (WHITE, RED, WHITE, YELLOW), 2)
    assert_close(read_corners(file_of(flag().quantize(4), "PNG", icc_profile=swapped_profile())), swapped, 2)


def test_an_srgb_profile_changes_nothing() -> None:
    photo = Image.open(PHOTOS / "chelsea.png").convert("RGB")
    decoded = images.read(file_of(photo, "PNG", icc_profile=SRGB)).picture
    assert decoded.tobytes() == photo.tobytes()


@pytest.mark.parametrize("profile", [b"", b"broken", SRGB[:200], SRGB[:-100], b"\0" * 500, swapped_profile()[:300]])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    assert_close(read_corners(file_of(flag(), "PNG", icc_profile=profile)), FLAG)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_profile_for_other_channels_is_ignored(mode: str) -> None:
    picture = flag().convert(mode)
    data = file_of(picture, "TIFF", icc_profile=swapped_profile())
    assert read_corners(data) == corners(picture.convert("RGB"))


def test_nothing_of_the_file_stays_attached_to_the_picture() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "camera"
    decoded = images.read(file_of(flag(), "PNG", exif=exif, icc_profile=SRGB, dpi=(72, 72)))
    assert decoded.picture.info == {}
    assert dict(decoded.picture.getexif()) == {}


# ---- frames, size, damage


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_used_with_a_warning(file_format: str) -> None:
    decoded = images.read(frames_of(file_format))
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
    assert images.read(bytes(data)).warnings == ("image has at least 1,000 frames, of which the first is used",)


def test_the_previews_in_a_phone_photo_are_no_frames() -> None:
    decoded = images.read(frames_of("MPO"))
    assert_close(corners(decoded.picture), FLAG, 60)
    assert decoded.warnings == ()


def test_a_large_jpeg_is_decoded_small_and_everything_else_as_it_is() -> None:
    large = flag(4000, 3000)
    decoded = images.read(file_of(large, "JPEG"))
    assert decoded.picture.size == (2000, 1500)
    assert_close(corners(decoded.picture), FLAG, 4)
    assert images.read(file_of(large, "PNG", compress_level=1)).picture.size == (4000, 3000)
    assert images.read(file_of(flag(1600, 1200), "JPEG")).picture.size == (1600, 1200)


def test_a_large_jpeg_on_its_side_is_decoded_small_and_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = flag(3000, 4000).transpose(Image.Transpose.ROTATE_90)
    decoded = images.read(file_of(stored, "JPEG", exif=exif))
    assert decoded.picture.size == (1500, 2000)
    assert_close(corners(decoded.picture), FLAG, 4)


def photo(width: int = 96, height: int = 64) -> Image.Image:
    return Image.open(PHOTOS / "chelsea.png").convert("RGB").resize((width, height))


EXIF = Image.Exif()
EXIF[ExifTags.Base.Orientation] = 6
EXIF[ExifTags.Base.DateTime] = "2026:01:01 00:00:00"
FILES = {
    "png": file_of(photo(), "PNG", exif=EXIF, icc_profile=SRGB),
    "png palette": file_of(photo().quantize(64), "PNG", transparency=3),
    "png grey 16": file_of(photo().convert("I;16"), "PNG"),
    "png animated": frames_of("PNG"),
    "jpeg": file_of(photo(), "JPEG", exif=EXIF, icc_profile=swapped_profile()),
    "jpeg progressive": file_of(photo(), "JPEG", progressive=True),
    "jpeg cmyk": file_of(photo().convert("CMYK"), "JPEG"),
    "jpeg of several": frames_of("MPO"),
    "webp": file_of(photo(), "WEBP", exif=EXIF),
    "webp lossless": file_of(photo().convert("RGBA"), "WEBP", lossless=True),
    "webp animated": frames_of("WEBP"),
    "bmp": file_of(photo(), "BMP"),
    "bmp palette": file_of(photo().quantize(64), "BMP"),
    "gif": file_of(photo(), "GIF"),
    "gif animated": frames_of("GIF"),
    "tiff": file_of(photo(), "TIFF", icc_profile=SRGB),
    "tiff lzw": file_of(photo(), "TIFF", compression="tiff_lzw"),
    "tiff jpeg": file_of(photo(), "TIFF", compression="jpeg"),
    "tiff float": file_of(photo().convert("F"), "TIFF"),
    "tiff pages": frames_of("TIFF"),
}


def read_or_refuse(data: bytes) -> Image.Image | None:
    """The picture; None where it is refused as the contract says."""
    try:
        decoded = images.read(data)
    except (InvalidImage, ImageTooLarge) as error:
        assert error.sentence.startswith("image ")  # noqa: PT017
        assert "Error" not in error.sentence  # noqa: PT017
        return None
    assert decoded.picture.mode == "RGB"
    return decoded.picture


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_is_refused_and_never_half_a_picture(name: str) -> None:
    data = FILES[name]
    whole = images.read(data).picture.tobytes()
    cuts = [len(data) * part // 40 for part in range(40)] + [len(data) - 1, len(data) - 2, len(data) - 20]
    seen = [read_or_refuse(data[:cut]) for cut in cuts if cut > 0]
    assert sum(picture is None for picture in seen) >= 20 or "animated" in name or "several" in name
    assert all(picture is None or picture.tobytes() == whole for picture in seen)


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "bmp", "gif", "tiff"])
def test_a_picture_cut_in_half_says_what_is_wrong(name: str) -> None:
    with pytest.raises(InvalidImage, match=r"^invalid_image: image is .*damaged"):
        images.read(FILES[name][: len(FILES[name]) // 2])


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60)
@given(data=st.data())
def test_changed_bytes_give_a_picture_or_a_refusal(name: str, data: st.DataObject) -> None:
    original = FILES[name]
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 6))):
        limit = data.draw(st.sampled_from([min(200, len(original)), len(original)]))
        changed[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(changed))


@given(st.binary(min_size=1, max_size=100), st.sampled_from([b"", *(data[:40] for data in FILES.values())]))
def test_any_bytes_behind_any_header_give_a_picture_or_a_refusal(rest: bytes, header: bytes) -> None:
    read_or_refuse(header + rest)


@given(st.text(st.characters(exclude_categories=()), min_size=1))
def test_any_text_is_a_picture_or_a_refusal(text: str) -> None:
    with pytest.raises(EditError):
        images.decode(text)


# ---- warnings


def tiff_that_pillow_warns_about() -> bytes:
    """A TIFF whose last tag points behind the end of the file."""
    data = bytearray(file_of(flag(), "TIFF", software="x" * 20))
    tag = data.index(struct.pack("<HHI", 305, 2, 21))
    struct.pack_into("<I", data, tag + 8, len(data) + 1000)
    return bytes(data)


def test_the_file_for_the_next_tests_makes_pillow_warn() -> None:
    with pytest.warns(UserWarning), Image.open(io.BytesIO(tiff_that_pillow_warns_about())) as picture:
        picture.load()


def test_the_warnings_of_pillow_do_not_reach_the_caller() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        images.read(tiff_that_pillow_warns_about())
    assert seen == []


def test_the_filters_for_warnings_are_as_before_after_reading_in_many_threads() -> None:
    before = list(warnings.filters)
    threads = [threading.Thread(target=images.read, args=(FILES["jpeg"],)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_nothing_is_printed() -> None:
    code = "import sys; from qwen_edit import images; images.read(sys.stdin.buffer.read())"
    for data in (tiff_that_pillow_warns_about(), png(9, 9, (b"IDAT", zlib.compress(b"\0" * 300)))):
        done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
        assert (done.stdout, done.stderr) == (b"", b"")


def test_the_limit_of_pillow_is_left_alone() -> None:
    code = (
        "from PIL import Image; before = Image.MAX_IMAGE_PIXELS; import qwen_edit.images; "
        "assert before == Image.MAX_IMAGE_PIXELS"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- encoding


def difference(picture: Image.Image, data: bytes) -> float:
    """Mean difference of the channels, in steps of 255."""
    with Image.open(io.BytesIO(data)) as decoded:
        return sum(ImageStat.Stat(ImageChops.difference(picture, decoded.convert("RGB"))).mean) / 3


@pytest.mark.parametrize(("output_format", "allowed"), [("png", 0.0), ("jpeg", 3.0), ("webp", 3.0)])
def test_what_is_encoded_decodes_to_the_same_picture(output_format: str, allowed: float) -> None:
    picture = photo(320, 208)
    data = images.encode(picture, output_format, 95)  # type: ignore[arg-type]
    with Image.open(io.BytesIO(data)) as decoded:
        assert (decoded.format, decoded.size, decoded.mode) == (output_format.upper(), (320, 208), "RGB")
    assert difference(picture, data) <= allowed


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_higher_quality_is_more_bytes_and_less_difference(output_format: str) -> None:
    picture = photo(320, 208)
    files = [images.encode(picture, output_format, quality) for quality in (1, 50, 89, 90, 100)]  # type: ignore[arg-type]
    assert sorted(files, key=len) == files
    differences = [difference(picture, data) for data in files]
    assert sorted(differences, reverse=True) == differences


def sampling(data: bytes) -> list[tuple[int, int, int]]:
    with Image.open(io.BytesIO(data)) as decoded:
        return [(horizontal, vertical, 0) for _, horizontal, vertical, _ in decoded.layer]  # type: ignore[attr-defined]


def test_a_jpeg_keeps_all_of_its_colour_from_quality_90_on() -> None:
    assert sampling(images.encode(photo(), "jpeg", 90)) == [(1, 1, 0)] * 3
    assert sampling(images.encode(photo(), "jpeg", 89))[0] == (2, 2, 0)


def test_the_quality_does_not_change_a_png() -> None:
    assert images.encode(photo(), "png", 1) == images.encode(photo(), "png", 100)


ENCODINGS: list[Callable[[Image.Image], bytes]] = [
    lambda picture: images.encode(picture, "png", 95),
    lambda picture: images.encode(picture, "jpeg", 95),
    lambda picture: images.encode(picture, "webp", 95),
]


@pytest.mark.parametrize("encode", ENCODINGS)
def test_the_same_picture_gives_the_same_bytes(encode: Callable[[Image.Image], bytes]) -> None:
    assert encode(photo()) == encode(photo())
