"""From a checkpoint's tensors to those of Nunchaku's engine, which takes nearly all of them as they are."""

from collections.abc import Mapping

import torch
from torch import Tensor

from qwen_edit.svdq.layout import GROUP
from qwen_edit.svdq.modules import AWQ_MODULES, NORMS, block_prefix


def engine_block(packed: Mapping[str, Tensor], block: int, file: str, dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: ARG001
    """The tensors of one block, under the same names; all but the norms are those of the file itself.

    Args:
        packed: this block's tensors under their full names.
        block: index of the block.
        file: not used: no value is looked at.
        dtype: of the norms.
    """
    prefix = block_prefix(block)
    tensors = dict(packed)
    for norm in NORMS:
        tensors[f"{prefix}{norm}.weight"] = packed[f"{prefix}{norm}.weight"].to(dtype)
    for module in AWQ_MODULES:
        groups = packed[f"{prefix}{module}.qweight"].shape[1] * 2 // GROUP
        for part in ("wscales", "wzeros"):
            # A narrow model's file pads the rows; what the engine expects are the first.
            tensors[f"{prefix}{module}.{part}"] = packed[f"{prefix}{module}.{part}"][:groups]
    return tensors
