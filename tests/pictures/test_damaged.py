import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from qwen_edit.errors import EditError, ImageTooLarge, InvalidImage
from qwen_edit.pictures import read
from tests.support.pictures import (
    SRGB,
    file_of,
    flag,
    frames_of,
    photo,
    png,
    swapped_profile,
)

pytestmark = pytest.mark.filterwarnings("ignore::Warning:PIL")  # as in a program

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
        decoded = read.read(data)
    except (InvalidImage, ImageTooLarge) as error:
        assert error.sentence.startswith("image ")  # noqa: PT017
        assert "Error" not in error.sentence  # noqa: PT017
        return None
    assert decoded.picture.mode == "RGB"
    return decoded.picture


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_is_refused_and_never_half_a_picture(name: str) -> None:
    data = FILES[name]
    whole = read.read(data).picture.tobytes()
    cuts = [len(data) * part // 40 for part in range(40)] + [len(data) - 1, len(data) - 2, len(data) - 20]
    seen = [read_or_refuse(data[:cut]) for cut in cuts if cut > 0]
    assert sum(picture is None for picture in seen) >= 20 or "animated" in name or "several" in name
    assert all(picture is None or picture.tobytes() == whole for picture in seen)


def test_a_chunk_that_is_too_short_is_refused() -> None:
    with pytest.raises(InvalidImage, match="header is damaged"):
        read.read(png(2, 2, (b"tRNS", b"\0"), (b"IDAT", zlib.compress(b"\0" * 14))))


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "bmp", "gif", "tiff"])
def test_a_picture_cut_in_half_says_what_is_wrong(name: str) -> None:
    with pytest.raises(InvalidImage, match=r"^invalid_image: image is .*damaged"):
        read.read(FILES[name][: len(FILES[name]) // 2])


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
        read.decode(text)


def tiff_that_pillow_warns_about() -> bytes:
    """A TIFF whose last tag points behind the end of the file."""
    data = bytearray(file_of(flag(), "TIFF", software="x" * 20))
    tag = data.index(struct.pack("<HHI", 305, 2, 21))
    struct.pack_into("<I", data, tag + 8, len(data) + 1000)
    return bytes(data)


def test_the_file_for_the_next_tests_makes_pillow_warn() -> None:
    with (
        pytest.warns(UserWarning, match="Truncated"),
        Image.open(io.BytesIO(tiff_that_pillow_warns_about())) as picture,
    ):
        picture.load()


def test_reading_leaves_the_filters_for_warnings_to_the_process() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read.read(tiff_that_pillow_warns_about())
    assert {str(one.message).split()[0] for one in seen} == {"Truncated"}


def test_where_warnings_are_errors_a_picture_that_pillow_warns_about_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidImage, match="damaged"):
            read.read(tiff_that_pillow_warns_about())
        with pytest.raises(ImageTooLarge):
            read.read(png(10_000, 10_000, (b"IDAT", b"")))


def test_a_program_that_asks_for_it_prints_nothing_and_pillows_limit_is_left_alone(tmp_path: Path) -> None:
    files = [tmp_path / "warned.tiff", tmp_path / "surplus.png"]
    files[0].write_bytes(tiff_that_pillow_warns_about())
    files[1].write_bytes(png(9, 9, (b"IDAT", zlib.compress(b"\0" * 300))))
    code = (
        "import pathlib, sys; from PIL import Image; before = Image.MAX_IMAGE_PIXELS\n"
        "from qwen_edit.pictures.read import ignore_pillows_warnings, read\n"
        "ignore_pillows_warnings()\n"
        "for file in sys.argv[1:]: read(pathlib.Path(file).read_bytes())\n"
        "assert before == Image.MAX_IMAGE_PIXELS"
    )

    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, check=True)

    assert (done.stdout, done.stderr) == (b"", b"")
