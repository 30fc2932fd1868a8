"""Weights in one call, for tests that have nothing else to do meanwhile."""

from pathlib import Path

import torch
from torch import Tensor

from qwen_edit.store.folder import is_used
from qwen_edit.store.shards import shards
from qwen_edit.weights.reader import Weights, folder_tensors


def read_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of a model folder that is used; see `folder_tensors`."""
    with Weights(shards(folder), device, wanted=is_used) as weights:
        return folder_tensors(lambda _file: weights, folder, dtype)
