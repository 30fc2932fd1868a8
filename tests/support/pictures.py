"""Pictures whose pixels are known, and files of them."""

import io
import itertools
import struct
import zlib

from PIL import Image, ImageCms

from qwen_edit.pictures import read
from tests.support.places import PHOTOS

WHITE = (255, 255, 255)
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
    decoded = read.read(data)
    assert decoded.picture.mode == "RGB"
    assert decoded.warnings == ()
    return corners(decoded.picture)


def photo(width: int = 96, height: int = 64) -> Image.Image:
    return Image.open(PHOTOS / "chelsea.png").convert("RGB").resize((width, height))


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, colour_type: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        parts.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(parts)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """A profile of a display whose red primary is green and the other way round."""
    profile = SRGB.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    swapped = bytearray(profile)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(swapped)


def grey_profile() -> bytes:
    """A profile of a grey scale in linear light, the smallest that a reader takes."""
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + b"\0" * 79,
        b"wtpt": b"XYZ \0\0\0\0" + d50,
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, 256),
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(body), len(tag))
        body += tag
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s12x4s28x", size, b"test", 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp") + d50
    return header.ljust(128, b"\0") + table + body
