"""Modulations out of the tensors of a whole checkpoint."""

from collections.abc import Mapping

from torch import Tensor

from qwen_edit.model.transformer.modulation import Modulations


def stored(packed: Mapping[str, Tensor], num_layers: int, file: str = "file") -> Modulations:
    """Those of every block."""
    modulations = Modulations()
    for block in range(num_layers):
        modulations.store(packed, block, file)
    return modulations
