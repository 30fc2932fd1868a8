"""Which kernel attends, where PyTorch's own choice is not the one for an edit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ENCODERS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def attention_of_encoders(device: torch.device) -> Iterator[None]:
    """Attend without cuDNN inside it, for work whose lengths differ from job to job.

    On Hopper and the data centre's Blackwell PyTorch takes cuDNN's attention first. That builds a plan for each shape,
    with a mask in any case, which takes longer than to attend to one prompt or one picture. The transformer attends
    hundreds of times in one shape, and keeps it. It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for
    a GPU".

    The order of the kernels stays PyTorch's: it is set when a process first attends, and what is set and put back
    around that would undo it for the transformer.
    """
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(ENCODERS):
        yield
