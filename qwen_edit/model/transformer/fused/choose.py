"""Which of the functions serve: Triton's on an NVIDIA GPU where they can be had and are right, PyTorch's elsewhere."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from qwen_edit.machine.backend import FIRST_WITH_FP8
from qwen_edit.model.transformer.fused import twins
from qwen_edit.svdq import fp8


@dataclass(frozen=True)
class Kernels:
    """The functions between the matrix products; see `twins` for what each is given.

    Attributes:
        name: whose they are, for the log.
        reason: why Triton's do not serve; empty where they do.
    """

    name: Literal["triton", "torch"]
    norm_rotate: Callable[[Tensor, Tensor, float, Tensor, Tensor], Tensor]
    modulate: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    gated: Callable[[Tensor, Tensor, Tensor], Tensor]
    quantize_rows: Callable[[Tensor], tuple[Tensor, Tensor]]
    reason: str = ""


def plain(reason: str) -> Kernels:
    """PyTorch's, on any device."""
    return Kernels("torch", twins.norm_rotate, twins.modulate, twins.gated, fp8.quantize_rows, reason)


PLAIN = plain("not asked for")


def kernels_for(device: torch.device) -> Kernels:
    """Choose for a device, by what is installed; `warm` also tries them.

    Below compute capability 8.9 Triton cannot convert to this fp8, and `quantize_rows` is PyTorch's.
    """
    if device.type != "cuda" or torch.version.hip:
        return plain("no NVIDIA GPU")
    try:
        from qwen_edit.model.transformer.fused import launch
    except ImportError as error:
        return plain(f"Triton cannot be imported: {error}")
    has_fp8 = torch.cuda.get_device_capability(device) >= FIRST_WITH_FP8
    quantize_rows = launch.quantize_rows if has_fp8 else fp8.quantize_rows
    return Kernels("triton", launch.norm_rotate, launch.modulate, launch.gated, quantize_rows)


def warm(device: torch.device, dtype: torch.dtype, heads: int, channels: int, width: int) -> Kernels:
    """Choose, have each kernel compiled or taken from Triton's cache, launch it, and compare it with its twin.

    It may run in a thread while the weights are read. It never raises: without these kernels an edit is only slower.

    Args:
        dtype: of the model's activations.
        heads: of the attention.
        channels: of a head.
        width: of the residual stream; the MLP's hidden layer is four times as wide.

    Returns:
        `kernels_for` the device; PyTorch's, with the reason, where a kernel cannot be had or computes something else.
    """
    try:
        kernels = kernels_for(device)
        wrong = differing(kernels, device, dtype, heads, channels, width) if kernels.name == "triton" else []
    except Exception as error:  # of a compiler, a linker, a driver, a folder that cannot be written to
        return plain(f"{type(error).__name__}: {error}")
    return plain(f"wrong result of {', '.join(wrong)}") if wrong else kernels


def differing(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, heads: int, channels: int, width: int
) -> list[str]:
    """The names of the functions whose results for random numbers are not near those of their twins."""
    right, sizes = plain(""), (device, dtype, heads, channels, width)
    # Twice, because both write into what they are given.
    calls = zip(samples(*sizes), samples(*sizes), strict=True)
    wrong = [
        name
        for (name, given), (_, likewise) in calls
        if not _near(getattr(kernels, name)(*given), getattr(right, name)(*likewise))
    ]
    return list(dict.fromkeys(wrong))


def samples(
    device: torch.device, dtype: torch.dtype, heads: int, channels: int, width: int
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The name of a function, and random arguments: two members of a batch with three tokens each.

    Queries come from a product with keys and values, and go behind two tokens of another stream.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    product = random(2, 3, 3, heads, channels)
    angles = torch.randn(3, channels // 2, generator=generator).to(device)
    positions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    joint = product.new_full((2, 5, heads, channels), torch.nan)
    yield "norm_rotate", (product[:, :, 0], random(channels), 1e-6, positions, joint[:, 2:])
    stream, scale, shift = random(2, 3, width), random(1, 1, width), random(1, 1, width)
    yield "modulate", (stream, scale, shift, 1e-6)
    yield "gated", (stream, scale, random(2, 3, width))
    for columns in (width, 4 * width):
        yield "quantize_rows", (random(6, columns),)


def _near(ours: Tensor | tuple[Tensor, ...], right: Tensor | tuple[Tensor, ...]) -> bool:
    """Whether a few numbers differ by roundings of the largest one at most, and all of them by little in the mean.

    A float32 sum in another order may turn a rounding in between. In fp8 a number may have the neighbouring code.
    """
    if isinstance(ours, tuple) and isinstance(right, tuple):
        return all(map(_near, ours, right))
    if not isinstance(ours, Tensor) or not isinstance(right, Tensor) or ours.dtype != right.dtype:
        return False
    if ours.dtype == fp8.DTYPE:
        codes, right_codes = (tensor.view(torch.int8).int() for tensor in (ours, right))
        return bool(((codes - right_codes).abs() <= 1).all())
    rounding = max(torch.finfo(ours.dtype).eps, 1e-6)
    apart, size = (ours.float() - right.float()).abs(), right.float().abs()
    return bool(apart.max() <= 2 * rounding * size.max()) and bool(apart.mean() <= rounding * size.mean() / 8)
