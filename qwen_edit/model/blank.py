"""Modules that are built without memory, and then given tensors that are on the device already."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qwen_edit.errors import ModelUnavailable

Module = TypeVar("Module", bound=nn.Module)

ALLOCATE = frozenset({torch.empty, torch.ones, torch.zeros})
"""What modules make their parameters with."""

INITIALIZE = frozenset(
    {
        *("constant_", "copy_", "fill_", "ones_", "zero_", "zeros_"),
        *("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"),
    }
)
"""And what they fill them with, by name."""


class WithoutMemory(TorchFunctionMode):
    """Inside it, modules are built with parameters on the meta device, which nothing fills.

    Unlike `with torch.device("meta")` it leaves arithmetic alone: the rotary tables, which no checkpoint holds, are
    computed for real. And it does not take torch's reference implementations in Python, which import the compiler:
    the text encoder's skeleton is there in a tenth of the time.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        kwargs = kwargs or {}
        if func in ALLOCATE and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        if getattr(func, "__name__", "") in INITIALIZE and (tensor := _first(args, kwargs)).is_meta:
            return tensor
        return func(*args, **kwargs)


def assign_tensors(module: Module, tensors: Mapping[str, Tensor], name: str) -> Module:
    """Make `tensors` the parameters of `module`, without a copy, and set it to inference.

    Args:
        module: built in `WithoutMemory`.
        tensors: exactly its state dict, all on one device, to which the buffers that it does not hold go as well.
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
    return module.to(next(iter(tensors.values())).device).eval()


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    tensor: Tensor = args[0] if args else kwargs["tensor"]
    return tensor
