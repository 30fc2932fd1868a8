"""What an operator may switch in how the transformer computes."""

from typing import NamedTuple


class Switches(NamedTuple):
    """Each is of one kind of backend alone.

    Attributes:
        compiled: the blocks of a dense one are compiled, which the first edit waits for.
        fused_qkv: the nunchaku backend uses the engine's fused product.
        triton: a dense one may use Triton's kernels.
    """

    compiled: bool = False
    fused_qkv: bool = False
    triton: bool = True
