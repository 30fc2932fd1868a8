"""Which kernels a dense transformer computes with, chosen and built while the weights are read."""

from collections.abc import Mapping
from typing import Any

import torch

from qwen_edit.loading.switches import Switches
from qwen_edit.log import log
from qwen_edit.model.transformer.fused.choose import Kernels, plain, warm


def choose_kernels(device: torch.device, dtype: torch.dtype, config: Mapping[str, Any], switches: Switches) -> Kernels:
    """Choose between Triton's kernels and PyTorch's, and say in the log which serve on a GPU.

    Args:
        config: of the checkpoint: how many heads, and how wide each is.
        switches: compiled blocks are PyTorch's, which the compiler fuses.
    """
    if device.type != "cuda":
        return plain("no NVIDIA GPU")
    if switches.compiled or not switches.triton:
        kernels = plain("the blocks are compiled" if switches.compiled else "QWEN_EDIT_TRITON is 0")
        log("kernels", name=kernels.name, reason=kernels.reason)
        return kernels
    heads, channels = config["num_attention_heads"], config["attention_head_dim"]
    kernels = warm(device, dtype, heads, channels, heads * channels)
    log("kernels", "info" if kernels.name == "triton" else "warning", name=kernels.name, reason=kernels.reason)
    return kernels
