"""The SVDQuant int4 checkpoint format. Names load on first use, so that checking a file does not wait for torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_edit.svdq.checkpoint import CheckpointError, CheckpointInfo, read_header
    from qwen_edit.svdq.dense import dense_block, dense_state_dict, dense_top_level

__all__ = ["CheckpointError", "CheckpointInfo", "dense_block", "dense_state_dict", "dense_top_level", "read_header"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "dense" if name.startswith("dense") else "checkpoint"
    return getattr(import_module(f"{__name__}.{module}"), name)
