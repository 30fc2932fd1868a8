"""Weights fetched by the worker itself, which it does only where `QWEN_EDIT_ALLOW_DOWNLOAD` is on."""

from pathlib import Path

from qwen_edit.catalog import CHECKPOINTS
from qwen_edit.errors import ModelUnavailable
from qwen_edit.log import log
from qwen_edit.model_folder import base_weights, broken_promises, read_manifest, require_checkpoints
from qwen_edit.selection import available

_FAILED = "the weights could not be fetched; the worker's log says why"


def fetch_missing(models: Path) -> None:
    """Bake what is not whole: the base model, and the preferred checkpoint where there is none.

    Raises:
        ModelUnavailable: the fetch failed; the cause says how.
    """
    if _is_whole(models):
        return
    from builder.bake import Order, bake
    from builder.errors import BakeError
    from builder.hub import Hub
    from builder.source import select

    checkpoints = [checkpoint.name for checkpoint in available(models)] or [CHECKPOINTS[0].name]
    try:
        outcome = bake(Order(models, select((), checkpoints)), Hub(), lambda line: log("fetching", said=line))
    except BakeError as error:
        raise ModelUnavailable(_FAILED) from error
    for sentences in outcome.failures.values():
        raise ModelUnavailable(_FAILED) from BakeError(sentences[0])


def _is_whole(models: Path) -> bool:
    """Whether the base model and a checkpoint are there as the manifest promises; no need to ask the hub then."""
    try:
        manifest = read_manifest(models)
        base_weights(models)
        require_checkpoints(models)
    except ModelUnavailable:
        return False
    return manifest is not None and not any(broken_promises(models, manifest))
