"""Makes a reply fit: RunPod's queue loses a larger one without a word to the caller.

The same pictures are tried as ever smaller files until the reply fits, and then as addresses in the bucket.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from PIL import Image

from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse, OutputFormat
from qwen_edit.edit.bucket import EXPIRY_S, Bucket
from qwen_edit.edit.hooks import never
from qwen_edit.errors import Cancelled, InvalidRequest, OutputTooLarge
from qwen_edit.pictures import write
from qwen_edit.settings import Settings

RUN_BYTES = 10_000_000
RUNSYNC_BYTES = 20_000_000
"""What RunPod takes as the result of a job: 10 and 20 MB, read as the smaller, decimal megabytes."""

LOWER_QUALITIES = (90, 80)
"""What `auto` goes down to from a higher quality. Below 80 it begins to show."""

FOLDER = "qwen-edit"
"""What every name in the bucket begins with."""

_ENVELOPE = len('{"output": }')
"""What RunPod's SDK writes around a reply."""

_NAMES = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP"}
_LOSSY: tuple[Literal["webp", "jpeg"], ...] = ("webp", "jpeg")


@dataclass(frozen=True)
class Delivery:
    """How replies travel: in `limit` bytes where there is a limit, and through a bucket where there is one.

    `is_cancelled` is asked before each file is made, and while it is uploaded.
    """

    limit: int | None = None
    bucket: Bucket | None = None
    job_id: str = "edit"
    is_cancelled: Callable[[], bool] = never


UNLIMITED = Delivery()
"""A reply of any size, and no bucket."""


@dataclass(frozen=True)
class Encoded:
    """The files of an edit, their addresses where they are in the bucket, and sentences on what was changed."""

    format: OutputFormat
    files: tuple[bytes, ...] = field(repr=False)
    urls: tuple[str, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """A response that fits, and the files that it holds or leads to."""

    response: EditResponse
    encoded: Encoded


def limit_for(job_id: str, settings: Settings) -> int:
    """Bytes that the body with a job's reply may have. The platform names a job of `/runsync` `sync-…`."""
    if settings.max_payload_mb is not None:
        return settings.max_payload_mb * 1_000_000
    return RUNSYNC_BYTES if job_id.startswith("sync-") else RUN_BYTES


def require_bucket(request: EditRequest, bucket: object | None) -> None:
    """Check that there is a bucket, or the settings of one, where a URL is asked for.

    Raises:
        InvalidRequest: there is none.
    """
    if request.return_as == "url" and bucket is None:
        sentence = "return is 'url', but this worker has no bucket (BUCKET_NAME is unset): expected 'base64'"
        raise InvalidRequest(sentence, "return")


def fit(
    pictures: Sequence[Image.Image],
    request: EditRequest,
    delivery: Delivery,
    compose: Callable[[Encoded], EditResponse],
) -> Reply:
    """Encode pictures of mode RGB so that the response that `compose` makes of them fits.

    Raises:
        InvalidRequest: a URL is asked for, and there is no bucket.
        OutputTooLarge: nothing that the request allows is small enough, and there is no bucket.
        InternalError: the bucket did not take the pictures.
    """
    require_bucket(request, delivery.bucket)
    sizes: list[int] = []
    for encoded in _attempts(pictures, request, delivery):
        if delivery.is_cancelled():
            raise Cancelled("the edit was cancelled")
        response = compose(encoded)
        sizes.append(size_of(response))
        if delivery.limit is None or sizes[-1] <= delivery.limit:
            return Reply(response, encoded)
    raise OutputTooLarge(
        f"the reply has {min(sizes):,} bytes at its smallest, expected at most {delivery.limit:,}: "
        f"ask for {_ways_out(request)}, or return 'url' from a worker with a bucket"
    )


def size_of(response: EditResponse) -> int:
    """The exact bytes of the body in which RunPod's SDK posts a response, without serialising its pictures again."""
    reply = response.to_json()
    if response.images is None:
        return _ENVELOPE + len(_serialised(reply))
    frame = _serialised({**reply, "image": "", "images": [""] * len(response.images)})
    return _ENVELOPE + len(frame) + len(response.image or "") + sum(map(len, response.images))


def safe_name(job_id: str) -> str:
    """A job's id as part of a file's name: it cannot choose a folder."""
    return re.sub(r"[^\w-]", "_", job_id, flags=re.ASCII)[:100]


def _attempts(pictures: Sequence[Image.Image], request: EditRequest, delivery: Delivery) -> Iterator[Encoded]:
    """The pictures as they were asked for, then all that is allowed, each made only when the one before did not fit."""
    output_format = "png" if request.output_format == "auto" else request.output_format
    asked = _encoded(pictures, output_format, request.output_quality)
    reason = f"as {_NAMES[output_format]} it did not fit a reply of {delivery.limit or 0:,} bytes"
    if request.return_as == "base64":
        yield asked
        yield from _smaller(pictures, request, reason)
    if delivery.bucket is not None:
        uploaded = replace(asked, urls=_upload(asked, delivery.bucket, delivery))
        hours = EXPIRY_S // 3600
        warning = f"the result is returned as URLs, which work for {hours} hours, because {reason}"
        yield uploaded if request.return_as == "url" else replace(uploaded, warnings=(warning,))


def _smaller(pictures: Sequence[Image.Image], request: EditRequest, reason: str) -> Iterator[Encoded]:
    if request.output_format == "png":
        yield Encoded("png", tuple(write.encode_smaller(picture, "png") for picture in pictures))
    if request.output_format != "auto":
        return
    files = tuple(write.encode_smaller(picture, "webp") for picture in pictures)
    yield Encoded("webp", files, warnings=(f"the result is a lossless WebP, because {reason}",))
    best = request.output_quality
    for quality in (best, *(lower for lower in LOWER_QUALITIES if lower < best)):
        for output_format in _LOSSY:
            warning = f"the result is a {_NAMES[output_format]} of quality {quality}, because {reason}"
            yield replace(_encoded(pictures, output_format, quality), warnings=(warning,))


def _encoded(pictures: Sequence[Image.Image], output_format: OutputFormat, quality: int) -> Encoded:
    return Encoded(output_format, tuple(write.encode(picture, output_format, quality) for picture in pictures))


def _upload(encoded: Encoded, bucket: Bucket, delivery: Delivery) -> tuple[str, ...]:
    # The token, because in a bucket that anyone may read, the names are all that protects the pictures.
    folder = f"{FOLDER}/{safe_name(delivery.job_id)}-{secrets.token_urlsafe(16)}"
    return tuple(
        bucket.upload(f"{folder}/{number}.{encoded.format}", data, f"image/{encoded.format}", delivery.is_cancelled)
        for number, data in enumerate(encoded.files)
    )


def _serialised(reply: dict[str, object]) -> bytes:
    """As the SDK does it."""
    return json.dumps(reply, ensure_ascii=False).encode()


def _ways_out(request: EditRequest) -> str:
    ways = ["output_format 'auto', 'webp' or 'jpeg'" if request.output_format == "png" else "a lower output_quality"]
    if request.num_images > 1:
        ways.append("fewer num_images")
    return f"{', '.join(ways)} or a smaller width and height"
