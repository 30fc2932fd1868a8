import contextlib
import struct
import zlib
from typing import cast

import pytest
from PIL import ExifTags, Image, ImageOps

from qwen_edit.errors import InvalidImage
from qwen_edit.pictures import read
from tests.support.pictures import (
    BLUE,
    FLAG,
    GREEN,
    RED,
    SRGB,
    WHITE,
    YELLOW,
    Colour,
    assert_close,
    corners,
    file_of,
    flag,
    grey_profile,
    photo,
    png,
    read_corners,
    swapped_profile,
)


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
    premultiplied = Image.new("RGBA", (8, 8), (128, 0, 0, 128))
    data = bytearray(file_of(premultiplied, "TIFF"))
    extra_samples = struct.pack("<HHI", 338, 3, 1)
    data[data.index(extra_samples) + 8] = 1
    assert_close(read_corners(bytes(data)), ((255, 127, 127),) * 4, 1)


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(file_format: str) -> None:
    picture = flag().quantize(4)
    data = file_of(picture, file_format, transparency=picture.getpixel((0, 0)))
    assert read_corners(data) == (WHITE, GREEN, BLUE, YELLOW)


def test_alpha_in_a_palette_is_laid_over_white() -> None:
    picture = flag().quantize(4)
    alphas = [255] * 4
    for corner, alpha in (((0, 0), 0), ((47, 0), 128)):
        alphas[cast(int, picture.getpixel(corner))] = alpha
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
    """Two by two pixels."""
    code = {"I;16": "<4H", "I;16B": ">4H", "I": "<4i", "F": "<4f"}[mode]
    return Image.frombytes(mode, (2, 2), struct.pack(code, *values))


def grey(*levels: int) -> tuple[Colour, ...]:
    return tuple((level, level, level) for level in levels)


@pytest.mark.parametrize(("mode", "file_format"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I", "TIFF")])
def test_a_grey_of_16_bits_is_scaled_and_not_clipped(file_format: str, mode: str) -> None:
    data = file_of(greys(mode, (0, 257, 128 * 257, 65535)), file_format)
    assert read_corners(data) == grey(0, 1, 128, 255)


def test_a_transparent_grey_of_16_bits_is_opaque() -> None:
    rows = b"".join(b"\0" + struct.pack(">HH", *row) for row in ((0, 257), (128 * 257, 65535)))
    data = png(2, 2, (b"tRNS", struct.pack(">H", 257)), (b"IDAT", zlib.compress(rows)), bits=16, colour_type=0)
    assert read_corners(data) == grey(0, 1, 128, 255)


def test_a_dark_grey_of_16_bits_stays_dark() -> None:
    assert read_corners(file_of(greys("I;16", (0, 100, 200, 255)), "PNG")) == grey(0, 0, 1, 1)


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
    with contextlib.suppress(InvalidImage):
        assert read.read(file_of(greys("F", (0.0, 0.5, 1.0, value)), "TIFF")).picture.mode == "RGB"


def test_colours_of_16_bits_are_scaled() -> None:
    row = b"\0" + b"".join(struct.pack(">HHH", *(channel * 257 for channel in colour)) for colour in FLAG[:2])
    low = b"\0" + b"".join(struct.pack(">HHH", *(channel * 257 for channel in colour)) for colour in FLAG[2:])
    data = png(2, 2, (b"IDAT", zlib.compress(row + low)), bits=16)
    assert read.read(data).picture.tobytes() == flag(2, 2).tobytes()


def test_cmyk_comes_out_in_its_colours() -> None:
    picture = flag().convert("CMYK")
    assert read_corners(file_of(picture, "TIFF")) == FLAG
    assert_close(read_corners(file_of(picture, "JPEG", quality=100, subsampling=0)), FLAG, 3)


def test_lab_comes_out_in_its_colours() -> None:
    picture = Image.frombytes("LAB", (8, 8), bytes((255, 0, 0)) * 64)
    assert_close(read_corners(file_of(picture, "TIFF")), (WHITE,) * 4, 1)


def test_ycbcr_comes_out_in_its_colours() -> None:
    assert_close(read_corners(file_of(flag().convert("YCbCr"), "TIFF")), FLAG, 2)


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


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_profile_for_greys_is_honoured(mode: str) -> None:
    picture = Image.new("L", (8, 8), 128).convert(mode)
    # Half of the light is level 188 of sRGB.
    assert read_corners(file_of(picture, "PNG", icc_profile=grey_profile())) == grey(188, 188, 188, 188)


@pytest.mark.filterwarnings("ignore::Warning:PIL")  # as in a program
def test_a_profile_that_is_no_bytes_is_ignored() -> None:
    data = bytearray(file_of(flag(), "TIFF", icc_profile=SRGB))
    tag = data.index(struct.pack("<HHI", 34675, 7, len(SRGB)))
    (offset,) = struct.unpack_from("<I", data, tag + 8)
    # As numbers of 16 bits, from the first that is not zero on.
    struct.pack_into("<HHII", data, tag, 34675, 3, 100, offset + 2)
    assert read_corners(bytes(data)) == FLAG


def test_an_srgb_profile_changes_nothing() -> None:
    decoded = read.read(file_of(photo(), "PNG", icc_profile=SRGB)).picture
    assert decoded.tobytes() == photo().tobytes()


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
    decoded = read.read(file_of(flag(), "PNG", exif=exif, icc_profile=SRGB, dpi=(72, 72)))
    assert decoded.picture.info == {}
    assert dict(decoded.picture.getexif()) == {}
