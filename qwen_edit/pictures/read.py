"""base64 → picture."""

import binascii
import io
import math
import struct
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass

from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.ExifTags import Base as ExifTag

from qwen_edit.errors import ImageTooLarge, InvalidImage, InvalidRequest
from qwen_edit.pictures.colour import to_srgb

MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
MAX_RATIO = 8
"""The longer side over the shorter."""

_READERS = (
    PngImagePlugin.PngImageFile,
    JpegImagePlugin.JpegImageFile,
    WebPImagePlugin.WebPImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    TiffImagePlugin.TiffImageFile,
)
_FORMATS = tuple(reader.format for reader in _READERS)
_EXPECTED = "a PNG, JPEG, WebP, BMP, GIF or TIFF picture"

_DRAFT_PIXELS = 2 * 1024 * 1024
"""A large JPEG is decoded at the smallest scale that keeps this many: twice as many as the model is shown."""

_MAX_PAGES = 1000
"""Pages of a TIFF that are counted. Counting takes Pillow a time that grows with their square."""

_URLSAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\n\r\f\v"

# What Pillow's readers raise on damaged files, warnings where a process makes errors of them. UnidentifiedImageError is
# an OSError.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what undoes it."""


@dataclass(frozen=True)
class Decoded:
    """A picture of mode RGB, the right way up, and sentences on what was left out of it."""

    picture: Image.Image
    warnings: tuple[str, ...] = ()


def ignore_pillows_warnings() -> None:
    """Keep what Pillow finds odd in pictures off stderr. Not for a library: it holds for the whole process.

    To be called before there are threads. Python's filters are the process's too: whoever changes them for a while and
    puts them back undoes what another thread did meanwhile, so reading a picture leaves them alone.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(image: str) -> Decoded:
    """Read the contract's `image`: base64, or a data URI, whose claim about the format is not used.

    Raises:
        InvalidRequest: it is a URL.
        InvalidImage: it is not base64, or not a picture of an accepted format and shape.
        ImageTooLarge: more than `MAX_BYTES` or `MAX_PIXELS`.
    """
    if is_url(image):
        raise InvalidRequest(
            "image is a URL, and image URLs are not accepted by this worker (QWEN_EDIT_ALLOW_URLS is off): "
            "expected base64 or a data URI",
            "image",
        )
    return read(from_base64(image))


def is_url(image: str) -> bool:
    """Whether the contract's `image` is the address of a picture rather than the picture."""
    return image[:32].lstrip().lower().startswith(("http://", "https://"))


def from_base64(image: str) -> bytes:
    """The bytes of base64 (standard or URL-safe, white space ignored, padding optional) or of a data URI of it.

    Raises:
        InvalidImage: it is not base64.
        ImageTooLarge: it holds more than `MAX_BYTES`.
    """
    try:
        symbols = _payload(image).encode("ascii").translate(_URLSAFE_TO_STANDARD, _WHITE_SPACE).rstrip(b"=")
        _refuse_too_many_bytes(len(symbols) * 3 // 4)
        return binascii.a2b_base64(symbols + b"=" * (-len(symbols) % 4), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise InvalidImage(
            f"image is {len(image):,} characters that are not base64, expected {_EXPECTED} in base64"
        ) from error


def read(data: bytes) -> Decoded:
    """Decode the bytes of a file.

    A JPEG of many megapixels comes out at a half, a quarter or an eighth of its size; nothing else is resized.

    Raises:
        InvalidImage: not a picture of an accepted format and shape.
        ImageTooLarge: more than `MAX_BYTES` or `MAX_PIXELS`.
    """
    _refuse_too_many_bytes(len(data))
    if not data:
        raise InvalidImage(f"image is empty, expected {_EXPECTED}")
    with _open(data) as picture:
        _refuse_size(*picture.size)
        try:
            frames = _frame_warnings(picture)
            _draft(picture)
            picture.load()
            return Decoded(to_srgb(_upright(picture)), frames)
        except _DAMAGE as error:
            raise InvalidImage(
                f"image is a {picture.format} file that is damaged, cut off or of an unusual kind"
            ) from error


def _payload(image: str) -> str:
    if not image[:32].lstrip().lower().startswith("data:"):
        return image
    head, _, payload = image.partition(",")
    if not head.rstrip().lower().endswith(";base64"):
        raise InvalidImage("image is a data URI without ;base64, expected data:image/…;base64,…")
    return payload


def _refuse_too_many_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageTooLarge(f"image is a file of {size:,} bytes, expected at most {MAX_BYTES:,}")


def _refuse_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageTooLarge(f"image is {width} × {height} pixels, expected at most {MAX_PIXELS // 10**6} megapixels")
    if min(width, height) < 1:
        raise InvalidImage(f"image is {width} × {height} pixels, expected at least one")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InvalidImage(
            f"image is {width} × {height} pixels, expected a longer side of at most {MAX_RATIO} times the shorter"
        )


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(
            f"image has more pixels than the {MAX_PIXELS // 10**6} million that are accepted"
        ) from error
    except _DAMAGE as error:
        raise InvalidImage(f"image is not {_EXPECTED}, or its header is damaged") from error


def _frame_warnings(picture: Image.Image) -> tuple[str, ...]:
    # The further pictures in a JPEG are previews and gain maps of the first.
    if isinstance(picture, JpegImagePlugin.JpegImageFile) or not getattr(picture, "is_animated", False):
        return ()
    tiff = isinstance(picture, TiffImagePlugin.TiffImageFile)
    count = _pages(picture) if tiff else getattr(picture, "n_frames", 1)
    at_least = "at least " if tiff and count == _MAX_PAGES else ""
    return (f"image has {at_least}{count:,} frames, of which the first is used",)


def _pages(picture: Image.Image) -> int:
    with suppress(EOFError):
        while picture.tell() + 1 < _MAX_PAGES:
            picture.seek(picture.tell() + 1)
    count = picture.tell() + 1
    picture.seek(0)
    return count


def _draft(picture: Image.Image) -> None:
    scale = math.sqrt(_DRAFT_PIXELS / (picture.width * picture.height))
    if scale < 1:
        picture.draft(None, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))


def _upright(picture: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes all of the EXIF again, which fails where any other tag of it is damaged.
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTag.Orientation, 1))
    except _DAMAGE:
        return picture
    return picture if turn is None else picture.transpose(turn)
