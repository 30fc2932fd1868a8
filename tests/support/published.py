"""The published model, which is too large to be here: its sizes follow from its architecture."""

from typing import Any

from qwen_edit.machine.backend import BackendName
from qwen_edit.machine.gpu_memory import ModelSizes, sizes_of
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, expected_tensors

TEXT_ENCODER, VAE, PACKED = 2 * 8_292_166_656, 2 * 126_892_531, 12_653_943_936


def published_sizes(backend: BackendName, itemsize: int = 2) -> ModelSizes:
    tensors: Any = expected_tensors(CONFIG_DEFAULTS, rank=128)
    checkpoint = CheckpointInfo("", CONFIG_DEFAULTS, 128, tensors, {})
    return sizes_of(backend, TEXT_ENCODER, VAE, checkpoint, itemsize=itemsize)
