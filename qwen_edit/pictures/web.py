"""The picture behind an `https://` URL."""

from qwen_edit import https
from qwen_edit.errors import ImageTooLarge, InvalidImage, InvalidRequest
from qwen_edit.pictures.read import MAX_BYTES

ACCEPT = "image/png, image/jpeg, image/webp, */*;q=0.5"

SECONDS = 10.0
"""For all of a download, from the first look-up to the last byte."""


def get_picture(
    url: str, limit: int = MAX_BYTES, seconds: float = SECONDS, network: https.Network | None = None
) -> bytes:
    """Download the bytes of a file. Whether the operator allows URLs is for the caller to check.

    Args:
        limit: bytes of the file.
        seconds: for all of it.
        network: the public one where left out.

    Raises:
        InvalidRequest: not a URL that is called, or one that does not lead to a public address.
        InvalidImage: the server cannot be reached, is too slow, or answers something else than 200 and a file.
        ImageTooLarge: more than `limit` bytes.
    """
    data = bytearray()
    # The cause is what the library raised: the words of the error itself are in the sentence already.
    try:
        https.get(url, data.extend, limit=limit, seconds=seconds, accept=ACCEPT, network=network)
    except https.AddressError as error:
        raise InvalidRequest(f"image is {error}", "image") from error.__cause__
    except https.AnswerError as error:
        raise InvalidImage(f"image is {error}") from error.__cause__
    except https.LengthError as error:
        raise ImageTooLarge(f"image is {error}") from error.__cause__
    return bytes(data)
