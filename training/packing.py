"""Quantizes the demo's transformers so that their 4-bit weights matter."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import pad

from qwen_edit.store.catalog import RANK
from qwen_edit.svdq import layout
from qwen_edit.svdq.quantize import quantize
from training.flow import CONFIG


def pack(state_dict: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose low-rank branch uses `rank` of its `RANK` directions, the others zero.

    Layers of width 128 have no more directions than `RANK`: a full branch would leave the 4-bit weights nothing, and no
    edit would show what is wrong with them.
    """
    tensors = quantize(state_dict, CONFIG, rank)
    branches = {
        ".proj_down": (layout.unpack_proj_down, layout.pack_proj_down),
        ".proj_up": (layout.unpack_proj_up, layout.pack_proj_up),
    }
    for ending, (unpack, repack) in branches.items():
        for name in [name for name in tensors if name.endswith(ending)]:
            tensors[name] = repack(pad(unpack(tensors[name]), (0, RANK - rank)))
    return tensors
