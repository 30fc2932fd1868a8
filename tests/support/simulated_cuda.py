"""A CUDA device that is this machine's memory: it computes what a GPU would, and notices what one would mind."""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
}
"""What hands a number of the device to the host, or takes the shape of its result from one."""

COPIES = {aten._to_copy.default, aten.copy_.default}

INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""These take indices from either side; those of the host are copied first, and from a mask they are counted."""


class OnDevice(Tensor):
    """A tensor of the device. `host` has its numbers."""

    host: Tensor
    device_in_use: "SimulatedCuda"
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type[Self], host: Tensor) -> Self:
        with torch.inference_mode(host.is_inference()):
            self = Tensor._make_wrapper_subclass(
                cls,
                host.shape,
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                device=CUDA,
            )
        self.host = host
        return self

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return cls.device_in_use.run(function, args, dict(kwargs or {}))


class SimulatedCuda(TorchDispatchMode):
    """Inside it, what is asked for on `cuda` is an `OnDevice`. In `waits` stands what the host has waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.run(function, args, dict(kwargs or {}))

    def enter_thread(self) -> None:
        """Let this thread see the device too, until it ends."""
        # Else a tensor that is made from a list is moved to the device where no mode sees it.
        torch._C._set_only_lift_cpu_tensors(True)
        self.__enter__()

    def run(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Compute on the host."""
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        if not here and not any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves):
            return function(*args, **kwargs)
        if _is_made_of_others(function):
            with self:
                return function.decompose(*args, **kwargs)
        self._look_at(function, args, kwargs, here, [tensor for tensor in tensors if not isinstance(tensor, OnDevice)])
        if _leaves(kwargs):
            return function(*tree_map(_on_host, args), **kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        compute = _scaled_product if function is aten._scaled_mm.default else function
        result = compute(*tree_map(_on_host, args), **tree_map(_on_host, kwargs))
        return tree_map(lambda leaf: _on_device(leaf, here), result)

    def _look_at(
        self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], here: list[Any], there: list[Tensor]
    ) -> None:
        crosses = function in COPIES and bool(there or _leaves(kwargs))
        reads = function in READS or (function in INDEXING and (there or any(map(_is_mask, here[1:]))))
        if reads or (crosses and not (kwargs.get("non_blocking") or args[2:3] == (True,))):
            self.waits.append(str(function))
        elif not crosses and here and any(tensor.dim() for tensor in there):
            raise RuntimeError(f"{function} of {here}, which are on the device, and of {list(map(_shape, there))}")


def _scaled_product(
    one: Tensor, other: Tensor, scale: Tensor, other_scale: Tensor, bias: Tensor, _: None, dtype: torch.dtype, *__: bool
) -> Tensor:
    """As `torch._scaled_mm`, which on the CPU takes a scale for each row from PyTorch 2.13 on."""
    return ((one.float() * scale) @ (other.float() * other_scale) + bias.float()).to(dtype)


def _is_made_of_others(function: Any) -> bool:
    """Whether PyTorch takes a function apart, which it does not do by itself in inference mode."""
    attends = function is aten.scaled_dot_product_attention.default  # whose parts are there for a device each
    return not attends and torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")


def _leaves(kwargs: Mapping[str, Any]) -> bool:
    """Whether the result is to be elsewhere than on the device."""
    return kwargs.get("device") is not None and kwargs["device"].type != "cuda"


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _on_host(leaf: Any) -> Any:
    return leaf.host if isinstance(leaf, OnDevice) else leaf


def _on_device(leaf: Any, here: list[Any]) -> Any:
    """The tensor of the device that has these numbers, which is one of the arguments after an operation in place."""
    if not isinstance(leaf, Tensor):
        return leaf
    same = [tensor for tensor in here if tensor.host is leaf]
    return same[0] if same else OnDevice(leaf)


class _Numbers(TorchFunctionMode):
    """`torch.tensor` reads the tensors in a list where no mode for operations sees it."""

    def __torch_function__(
        self, function: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function is torch.tensor:
            args = tree_map(lambda leaf: leaf.tolist() if isinstance(leaf, OnDevice) else leaf, args)
        return function(*args, **(kwargs or {}))


class Link:
    """The way to the device, for `qwen_edit.weights.sinks.PinnedRing`."""

    def allocate(self, size: int) -> Tensor:
        return OnDevice(torch.empty(size, dtype=torch.uint8))

    def pin(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> "Link":
        for target, source in pairs:
            target.copy_(source, non_blocking=True)
        return self

    def synchronize(self) -> None:
        """Every copy is done."""

    join = close = synchronize


@contextmanager
def simulated_cuda() -> Iterator[SimulatedCuda]:
    """A device for as long as the block lasts, in this thread and those that `enter_thread`."""
    start, torch.cuda._lazy_init = torch.cuda._lazy_init, lambda: None
    OnDevice.device_in_use = device = SimulatedCuda()
    lift = torch._C._only_lift_cpu_tensors()
    try:
        with _device_guard(), _Numbers(), device:
            torch._C._set_only_lift_cpu_tensors(True)
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(lift)
        torch.cuda._lazy_init = start


@contextmanager
def _device_guard() -> Iterator[None]:
    """PyTorch makes a tensor's device the current one before it takes an index of it, or moves it.

    Without CUDA there is no way to do so, and the host's is lent, which does nothing.
    """
    if torch.cuda._is_compiled():
        torch._C._ensureCUDADeviceGuardSet()
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[1] = guards[0]
    try:
        yield
    finally:
        guards[1] = None
