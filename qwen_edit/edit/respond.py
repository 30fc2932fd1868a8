"""A reply composed of what came off the device. None of it needs a model."""

import time
from dataclasses import dataclass

from PIL import Image

from qwen_edit.contract.response import EditResponse, ModelInfo, StartTimings, Timings
from qwen_edit.edit.fitting import UNLIMITED, Delivery, Encoded, Reply, fit
from qwen_edit.edit.prepare import Prepared
from qwen_edit.edit.receipt import Made, describe
from qwen_edit.pictures import write
from qwen_edit.store.manifest import Manifest


@dataclass(frozen=True)
class Rendered:
    """What came off the device, how it was made there, and the manifest that says where the weights came from."""

    pictures: list[Image.Image]
    made: Made
    manifest: Manifest | None
    stages_ms: dict[str, float]
    start: StartTimings | None
    warnings: tuple[str, ...] = ()


def respond(prepared: Prepared, rendered: Rendered, queue_ms: float = 0.0, delivery: Delivery = UNLIMITED) -> Reply:
    """Encode the pictures so that the reply fits, and say what made them. Needs no model; any thread may call it.

    Args:
        queue_ms: milliseconds that the request waited for the device.
        delivery: how the reply travels.

    Raises:
        EditError: the reply cannot be made to fit, or the bucket did not take the pictures.
    """
    started = time.perf_counter()
    model = describe(prepared.plan, rendered.made, rendered.manifest, prepared.on_disk)

    def compose(encoded: Encoded) -> EditResponse:
        inline = [] if encoded.urls else [write.to_base64(file) for file in encoded.files]
        stages = {"queue": queue_ms, "decode": prepared.decode_ms, **rendered.stages_ms, "encode": _ms_since(started)}
        return _response(prepared, rendered, model, encoded, inline, stages)

    return fit(rendered.pictures, prepared.request, delivery, compose)


def _response(
    prepared: Prepared,
    rendered: Rendered,
    model: ModelInfo,
    encoded: Encoded,
    inline: list[str],
    stages_ms: dict[str, float],
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
        model_info=model,
        timings=Timings(**timings, cold=rendered.start is not None, start=rendered.start),
        warnings=[*prepared.warnings, *rendered.warnings, *encoded.warnings],
    )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
