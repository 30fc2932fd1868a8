"""What goes to the device and what comes back: a request made ready, a reply composed. None of it needs a model."""

import time
from dataclasses import dataclass

from PIL import Image

from qwen_edit import images
from qwen_edit.payload import UNLIMITED, Delivery, Encoded, Reply, fit, require_bucket
from qwen_edit.schema import EditRequest, EditResponse, ModelInfo, StartTimings, Timings
from qwen_edit.selection import Plan, available, plan
from qwen_edit.settings import Settings


@dataclass(frozen=True)
class Prepared:
    """A request that is ready for the device: its picture decoded, everything it left open decided."""

    request: EditRequest
    picture: Image.Image
    plan: Plan
    warnings: tuple[str, ...]
    decode_ms: float


@dataclass(frozen=True)
class Rendered:
    """What came off the device."""

    pictures: list[Image.Image]
    model: ModelInfo
    stages_ms: dict[str, float]
    start: StartTimings | None
    warnings: tuple[str, ...] = ()


def prepare(request: EditRequest, settings: Settings) -> Prepared:
    """Read the picture and decide what will run. Needs no model; any thread may call it.

    Raises:
        EditError: the picture cannot be used, no checkpoint is there for the request, or no bucket for a URL.
    """
    started = time.perf_counter()
    require_bucket(request, settings.bucket)
    decoded = _read_picture(request.image, settings)
    chosen = plan(request, decoded.picture.size, available(settings.models))
    return Prepared(request, decoded.picture, chosen, (*decoded.warnings, *chosen.warnings), _ms_since(started))


def _read_picture(image: str, settings: Settings) -> images.Decoded:
    if not (settings.allow_urls and images.is_url(image)):
        return images.decode(image)
    from qwen_edit.fetch import fetch  # its HTTP client is for those alone who allow URLs

    return images.read(fetch(image))


def respond(prepared: Prepared, rendered: Rendered, queue_ms: float = 0.0, delivery: Delivery = UNLIMITED) -> Reply:
    """Encode the pictures so that the reply fits, and say what made them. Needs no model; any thread may call it.

    Args:
        queue_ms: milliseconds that the request waited for the device.
        delivery: how the reply travels.

    Raises:
        EditError: the reply cannot be made to fit, or the bucket did not take the pictures.
    """
    started = time.perf_counter()

    def compose(encoded: Encoded) -> EditResponse:
        inline = [] if encoded.urls else [images.to_base64(file) for file in encoded.files]
        stages = {"queue": queue_ms, "decode": prepared.decode_ms, **rendered.stages_ms, "encode": _ms_since(started)}
        return _response(prepared, rendered, encoded, inline, stages)

    return fit(rendered.pictures, prepared.request, delivery, compose)


def _response(
    prepared: Prepared, rendered: Rendered, encoded: Encoded, inline: list[str], stages_ms: dict[str, float]
) -> EditResponse:
    timings = {name: round(ms, 1) for name, ms in (*stages_ms.items(), ("total", sum(stages_ms.values())))}
    return EditResponse(
        image=inline[0] if inline else None,
        images=inline or None,
        url=encoded.urls[0] if encoded.urls else None,
        urls=list(encoded.urls) or None,
        format=encoded.format,
        width=prepared.plan.width,
        height=prepared.plan.height,
        seed=prepared.plan.seed,
        model_info=rendered.model,
        timings=Timings(**timings, cold=rendered.start is not None, start=rendered.start),
        warnings=[*prepared.warnings, *rendered.warnings, *encoded.warnings],
    )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
