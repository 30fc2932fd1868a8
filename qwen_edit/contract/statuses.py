"""The contract's codes as HTTP statuses."""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

_STATUSES: Mapping[str, HTTPStatus] = MappingProxyType(
    {
        "invalid_request": HTTPStatus.BAD_REQUEST,
        "invalid_image": HTTPStatus.BAD_REQUEST,
        "image_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "model_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
        # The worker has tried it with less memory already.
        "out_of_memory": HTTPStatus.INSUFFICIENT_STORAGE,
        # nginx's 499 is no status of the standard. Clients repeat what was answered with 408, 409 or 5xx, and whoever
        # cancels wants no repeat. An edit that was cancelled is gone, and 410 is repeated by nobody.
        "cancelled": HTTPStatus.GONE,
        # The request is understood; it is its result that cannot be delivered. 413 would blame the upload.
        "output_too_large": HTTPStatus.UNPROCESSABLE_ENTITY,
        "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)


def status(code: str) -> int:
    """The HTTP status of a code of the contract; 500 where the code is none of it."""
    return _STATUSES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR).value
