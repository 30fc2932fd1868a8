"""A request made ready for the device. None of it needs a model."""

import time
from dataclasses import dataclass

from PIL import Image

from qwen_edit.contract.request import EditRequest
from qwen_edit.edit.fitting import require_bucket
from qwen_edit.edit.plan import Plan, plan
from qwen_edit.pictures import read
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import Checkpoint
from qwen_edit.store.folder import available


@dataclass(frozen=True)
class Prepared:
    """A request that is ready for the device: its picture decoded, everything it left open decided.

    `on_disk` are the checkpoints that it was decided from.
    """

    request: EditRequest
    picture: Image.Image
    plan: Plan
    on_disk: tuple[Checkpoint, ...]
    warnings: tuple[str, ...]
    decode_ms: float


def prepare(request: EditRequest, settings: Settings) -> Prepared:
    """Read the picture and decide what will run. Needs no model; any thread may call it.

    Raises:
        EditError: the picture cannot be used, no checkpoint is there for the request, or no bucket for a URL.
    """
    started = time.perf_counter()
    require_bucket(request, settings.bucket)
    decoded = _read_picture(request.image, settings)
    on_disk = available(settings.models)
    chosen = plan(request, decoded.picture.size, on_disk)
    warnings = (*request.warnings, *decoded.warnings, *chosen.warnings)
    return Prepared(request, decoded.picture, chosen, on_disk, warnings, (time.perf_counter() - started) * 1000)


def _read_picture(image: str | bytes, settings: Settings) -> read.Decoded:
    if isinstance(image, bytes):
        return read.read(image)
    if not (settings.allow_urls and read.is_url(image)):
        return read.decode(image)
    from qwen_edit.pictures.web import get_picture  # its HTTP client is for those alone who allow URLs

    return read.read(get_picture(image))
