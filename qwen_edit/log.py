"""One JSON line for each event, on stdout. Not `logging`: RunPod's SDK configures that for itself as it is imported."""

import json
import sys
from datetime import UTC, datetime
from typing import Literal

Level = Literal["info", "warning", "error"]


def log(event: str, level: Level = "info", **fields: object) -> None:
    """Write one event. No prompt and no base64 belongs in the fields."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event, **fields}
    sys.stdout.write(json.dumps(line, default=str) + "\n")
    sys.stdout.flush()
