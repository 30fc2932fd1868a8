"""A checkpoint on its way into a transformer, a block at a time.

No diffusers here, so that it works while that is imported.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from qwen_edit.machine.backend import BackendName
from qwen_edit.model.transformer.modulation import Modulations
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.dense import dense_block, dense_top_level
from qwen_edit.svdq.engine import engine_block
from qwen_edit.svdq.fp8 import fp8_block
from qwen_edit.svdq.modules import block_prefix, top_level_tensors
from qwen_edit.weights.file import Portions

UNUSED = ".smooth_factor_orig"
"""What the names of the tensors end with that only the engine has a place for."""

TakeBlock = Callable[[Mapping[str, Tensor], int, str, torch.dtype], dict[str, Tensor]]
"""From a block's packed tensors, its index, the file's name and a dtype to its tensors in the transformer."""


@dataclass(frozen=True)
class BackendFormat:
    """What a backend makes of a checkpoint's blocks.

    `is_dense` says that the modulations are taken out of the blocks and looked up; the engine computes its own.
    """

    take_block: TakeBlock
    is_dense: bool


FORMATS: Mapping[BackendName, BackendFormat] = MappingProxyType(
    {
        "dense": BackendFormat(dense_block, is_dense=True),
        "dense-fp8": BackendFormat(fp8_block, is_dense=True),
        "nunchaku": BackendFormat(engine_block, is_dense=False),
    }
)


@dataclass(frozen=True)
class Expanded:
    """What a checkpoint means, on the device, for a transformer that is still to be built.

    `modulations` are None where the transformer computes its own.
    """

    info: CheckpointInfo
    dtype: torch.dtype
    tensors: dict[str, Tensor]
    modulations: Modulations | None


def portions_of(info: CheckpointInfo, form: BackendFormat) -> Portions:
    """The tensors outside of the blocks, then those of each block: what `Weights` is to hand out together."""
    blocks: dict[str, list[str]] = {block_prefix(block): [] for block in range(info.num_layers)}
    for name in info.tensors:
        prefix = ".".join(name.split(".", 2)[:2]) + "."
        if prefix in blocks and not (form.is_dense and name.endswith(UNUSED)):
            blocks[prefix].append(name)
    return [list(top_level_tensors(info.config)), *blocks.values()]


def expand(
    info: CheckpointInfo, portions: Iterable[Mapping[str, Tensor]], form: BackendFormat, dtype: torch.dtype
) -> Expanded:
    """Expand a checkpoint while it is read. At the peak there are the result and what `portions` holds.

    Args:
        info: the checkpoint's header.
        portions: `portions_of` it, on the device.
        dtype: of what the transformer computes with.

    Raises:
        ModelUnavailable: it cannot be read, or a value in it gives no finite weight.
        Cancelled: the reading was closed.
    """
    modulations = Modulations() if form.is_dense else None
    tensors: dict[str, Tensor] = {}
    for part in _parts(info, portions, form, dtype, modulations):
        tensors |= part
    return Expanded(info, dtype, tensors, modulations)


def refill(
    info: CheckpointInfo,
    portions: Iterable[Mapping[str, Tensor]],
    form: BackendFormat,
    dtype: torch.dtype,
    places: Mapping[str, Tensor],
    modulations: Modulations | None,
) -> None:
    """Expand another checkpoint of the same configuration into the memory of the present one.

    Where it fails, some of the blocks are of one checkpoint and some of the other.

    Args:
        dtype: the one that the present one was expanded with.
        places: the transformer's state dict.
        modulations: those that were attached to it.

    Raises:
        ModelUnavailable, Cancelled: see `expand`.
    """
    for part in _parts(info, portions, form, dtype, modulations):
        for name, tensor in part.items():
            places[name].copy_(tensor)


def _parts(
    info: CheckpointInfo,
    portions: Iterable[Mapping[str, Tensor]],
    form: BackendFormat,
    dtype: torch.dtype,
    modulations: Modulations | None,
) -> Iterator[dict[str, Tensor]]:
    rest = iter(portions)
    yield dense_top_level(next(rest), info.file, dtype)
    for block, packed in enumerate(rest):
        if modulations is not None:
            modulations.store(packed, block, info.file)
        yield form.take_block(packed, block, info.file, dtype)
