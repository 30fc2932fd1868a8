"""Handing tensors to a module that was built on the meta device."""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from qwen_edit.errors import ModelUnavailable

Module = TypeVar("Module", bound=nn.Module)


def assign_tensors(module: Module, tensors: Mapping[str, Tensor], name: str) -> Module:
    """Make `tensors` the parameters of `module`, without a copy, and set it to inference.

    Args:
        module: built on the meta device.
        tensors: exactly its state dict, already on the target device.
        name: what the module is called in an error.

    Raises:
        ModelUnavailable: a tensor is missing, unknown or of another shape.
    """
    expected = module.state_dict()
    for key in [*expected, *tensors]:
        have = tuple(tensors[key].shape) if key in tensors else "missing"
        want = tuple(expected[key].shape) if key in expected else "no such tensor"
        if have != want:
            raise ModelUnavailable(f"{name} has the tensor {key} as {have}, its configuration expects {want}")
    module.load_state_dict(tensors, strict=True, assign=True)
    module.requires_grad_(requires_grad=False)
    return module.eval()
