"""Where pictures go that do not travel in the reply: a bucket of an S3-compatible store."""

import io
import re
import threading
from collections.abc import Callable
from typing import Any

from qwen_edit.edit.hooks import never
from qwen_edit.errors import Cancelled, UploadError
from qwen_edit.settings import BucketSettings

EXPIRY_S = 24 * 60 * 60
"""How long an address works. Signature version 4 allows a week at most."""

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
"""Seconds of silence after which an attempt is given up, not seconds that an upload may take."""

ATTEMPTS = 3

_REGION_IN_HOST = re.compile(r"//s3[.-](?:dualstack\.)?([a-z0-9-]+)\.[^/:]+\.", re.IGNORECASE)
_ANY_REGION = "us-east-1"
"""What stores without regions take."""


class Bucket:
    """Takes files and gives their addresses. Any thread may call it."""

    def __init__(self, settings: BucketSettings, read_timeout: float = READ_TIMEOUT_S) -> None:
        self._settings = settings
        self._read_timeout = read_timeout
        self._client: Any = None
        self._creating = threading.Lock()

    def upload(self, name: str, data: bytes, content_type: str, is_cancelled: Callable[[], bool] = never) -> str:
        """Put a file into the bucket.

        Args:
            is_cancelled: asked before each part that is sent.

        Returns:
            A presigned `GET` address of it, which works for `EXPIRY_S` seconds.

        Raises:
            UploadError: the store refused it or did not answer.
            Cancelled: the flag was set.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        place = {"Bucket": self._settings.name, "Key": name}
        try:
            client = self._connect()
            client.put_object(**place, Body=_Part(data, is_cancelled), ContentType=content_type)
            url: str = client.generate_presigned_url("get_object", Params=place, ExpiresIn=EXPIRY_S)
        except ClientError as error:
            raise UploadError(_refused(error.response.get("Error", {}).get("Code", ""))) from error
        except (BotoCoreError, ValueError) as error:
            raise UploadError(
                "the picture could not be uploaded: "
                f"the store at BUCKET_ENDPOINT_URL cannot be reached or does not answer ({type(error).__name__})"
            ) from error
        return url

    def _connect(self) -> Any:  # noqa: ANN401 - boto3 makes the client's class as it runs
        # boto3's clients may be shared between threads, but not what makes them.
        with self._creating:
            if self._client is None:
                self._client = _client(self._settings, self._read_timeout)
            return self._client


class _Part(io.BytesIO):
    """A file that is read no further once a flag is set."""

    def __init__(self, data: bytes, is_cancelled: Callable[[], bool]) -> None:
        super().__init__(data)
        self._is_cancelled = is_cancelled

    def read(self, size: int | None = -1, /) -> bytes:
        if self._is_cancelled():
            raise Cancelled("the edit was cancelled")
        return super().read(size)


def _client(settings: BucketSettings, read_timeout: float) -> Any:  # noqa: ANN401 - as above
    import boto3.session  # here, because it takes a sixth of a second that most workers never need
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint_url,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        region_name=_region(settings.endpoint_url),
        config=Config(
            signature_version="s3v4",
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=read_timeout,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            # Every store knows buckets as the first part of a path, not every one as part of its host's name.
            s3={"addressing_style": "path"},
            # Otherwise boto3 sends checksums in a way that only Amazon's own store and few others take.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _region(endpoint_url: str) -> str:
    """The region in a host such as `s3.eu-west-1.amazonaws.com`: an address is signed for one."""
    found = _REGION_IN_HOST.search(endpoint_url)
    return found[1].lower() if found else _ANY_REGION


def _refused(code: str) -> str:
    # The store's own word, unless it is no word: then it is not for the caller.
    word = code if re.fullmatch(r"[A-Za-z0-9]{1,40}", code) else "without a reason"
    return f"the picture could not be uploaded: the store at BUCKET_ENDPOINT_URL refused it ({word})"
