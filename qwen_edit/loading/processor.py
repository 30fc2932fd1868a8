"""The image processor of the text encoder, built from `preprocessor_config.json`."""

from pathlib import Path

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwen_edit.store.documents import file_name, read_object
from qwen_edit.store.fields import Table, integer, misfit, number, part, several, take

_LEAST, _MOST = integer(1, 2**20), integer(1, 2**26)
"""Pixels of a picture: it is enlarged to the least, which must not be more than an edit shows."""

_FIELDS: Table = {
    "image_mean": several(number(-1e3, 1e3), 3, 3),
    "image_std": several(number(1e-6, 1e3), 3, 3),
    "patch_size": integer(1, 64),
    "temporal_patch_size": integer(1, 8),
    "merge_size": integer(1, 8),
}


def load_processor(folder: Path) -> Qwen2VLImageProcessorPil:
    """The processor with the configuration's sizes and colours; that it resizes and scales is not left open.

    Args:
        folder: the base model's `processor/`.

    Raises:
        ModelUnavailable: the file is missing or damaged, or a value cannot be that of this network.
    """
    name, document = file_name(folder / "preprocessor_config.json"), read_object(folder / "preprocessor_config.json")
    edges = take(name, part(name, document, "size"), {"shortest_edge": _LEAST, "longest_edge": _MOST})
    pixels = take(name, document, {"min_pixels": _LEAST, "max_pixels": _MOST})
    least = pixels.get("min_pixels", edges.get("shortest_edge", Qwen2VLImageProcessorPil.size["shortest_edge"]))
    most = pixels.get("max_pixels", edges.get("longest_edge", Qwen2VLImageProcessorPil.size["longest_edge"]))
    if least > most:
        raise misfit(name, "max_pixels", most, f"at least {least}, the min_pixels")
    size = {"shortest_edge": least, "longest_edge": most}
    return Qwen2VLImageProcessorPil(size=size, **take(name, document, _FIELDS, frozenset(_FIELDS)))
