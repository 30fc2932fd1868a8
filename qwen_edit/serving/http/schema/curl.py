"""An operation's examples as commands."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]


def commands(method: str, path: str, operation: Schema) -> Iterator[str]:
    """The examples of an operation, one command each; `$BASE` is the server's address.

    Args:
        method: in capitals.
    """
    address = f'"$BASE{path.replace("{job_id}", "$JOB_ID")}"'
    start = f"curl -s -X {method} {address}"
    content = operation.get("requestBody", {}).get("content", {})
    shown = [command for kind, media in content.items() for command in _bodies(start, kind, media)]
    yield from shown or [start]


def _bodies(start: str, kind: str, media: Schema) -> Iterator[str]:
    if kind == "image/png":
        query = start[:-1] + '?prompt=make+it+snow"'
        yield f"{query} -H 'Content-Type: image/png' -H 'Accept: image/*' --data-binary @photo.png -o edited.png"
    for example in media.get("examples", {}).values():
        if kind == "application/json":
            yield f"{start} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(example['value']))}"
        else:
            parts = {**example["value"], "image": "@photo.png"}
            yield start + "".join(f" -F {shlex.quote(f'{name}={value}')}" for name, value in parts.items())
