"""From packed tensors to a dense model: each quantized layer becomes the plain layer that it stands for.

Queries, keys and values stay the one layer that the file has for them; outside of the blocks all is as in diffusers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qwen_edit.svdq import layout
from qwen_edit.svdq.checkpoint import CheckpointError
from qwen_edit.svdq.modules import NORMS, SHIFTED_MODULES, SVDQ_MODULES, block_prefix

ACTIVATION_SHIFT = 0.171875
"""11/64, just above −min(GELU): what the kernels add to the input of `*_mlp.net.2` to make it unsigned."""

MODULATIONS = 6
"""What a modulation layer gives for each channel: shift, scale and gate of the attention, then of the MLP."""

SCALES = (1, 4)
"""Which of the modulations are scales; the format stores them with the 1 of `x · (1 + scale)` in the bias."""


def dense_top_level(tensors: Mapping[str, Tensor], file: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The tensors outside of the blocks, bfloat16 under their stock names, as copies in `dtype`.

    Raises:
        CheckpointError: as for `dense_block`.
    """
    dense = {name: tensor.to(dtype, copy=True) for name, tensor in tensors.items()}
    _check_finite(dense, tensors, file)
    return dense


def dense_block(
    tensors: Mapping[str, Tensor], block: int, file: str, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """The tensors of one block but for its modulations, on the device of the packed ones: `model.transformer.block`'s.

    A weight is [N, K], a bias [N], under the name of its layer in the file. The packed tensors are left as they are.

    Args:
        tensors: at least this block's packed tensors under their full names, in the dtypes and shapes that
            `modules.expected_tensors` gives; `smooth_factor_orig` is not asked for.
        block: index of the block.
        file: name of the file they come from, for the error.
        dtype: of the result; everything is computed in float32 and rounded once.

    Raises:
        CheckpointError: a value is not finite, or would be after a division by a smooth factor of zero.
    """
    prefix = block_prefix(block)
    dense = {f"{prefix}{norm}.weight": tensors[f"{prefix}{norm}.weight"].to(dtype, copy=True) for norm in NORMS}
    for module in SVDQ_MODULES:
        shift = ACTIVATION_SHIFT if module in SHIFTED_MODULES else 0.0
        weight, bias = dense_svdq(_parts(tensors, prefix + module), shift)
        dense |= {f"{prefix}{module}.weight": weight.to(dtype), f"{prefix}{module}.bias": bias.to(dtype)}
    _check_finite(dense, tensors, file)
    return dense


def dense_svdq(parts: Mapping[str, Tensor], shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weight [N, K] and bias [N], float32, of the plain layer that an SVDQ layer stands for.

    The layer computes `((x + shift) / smooth) (q · scale)ᵀ + (x D) Uᵀ + bias`, so
    `W = q · scale / smooth + U Dᵀ` and `b = bias + shift · Σₖ q · scale / smooth`.

    Args:
        parts: the packed `qweight`, `wscales`, `bias`, `smooth_factor`, `proj_down` and `proj_up`.
        shift: what the layer adds to its quantized input.
    """
    scales = layout.unpack_wscales(parts["wscales"]).float()
    residual = layout.unpack_qweight(parts["qweight"]).float()
    _groups(residual).mul_(scales[:, :, None])
    residual /= layout.unpack_vector(parts["smooth_factor"]).float()
    bias = layout.unpack_vector(parts["bias"]).float() + shift * residual.sum(dim=1)
    up, down = layout.unpack_proj_up(parts["proj_up"]).float(), layout.unpack_proj_down(parts["proj_down"]).float()
    return residual.addmm_(up, down.T), bias


def dense_modulation(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight [6d, d] and bias [6d], float32, in stock order, of the modulation that an AWQ layer stands for.

    `W = q · scale + zero`. The format orders outputs channel by channel, `6c + j`; the stock layer holds the six
    modulations j one after the other, `j · d + c`, and adds the 1 of the scales itself.

    Args:
        parts: the packed `qweight`, and `wscales`, `wzeros` and `bias`, which are row-major.
    """
    values = layout.unpack_awq_qweight(parts["qweight"]).float()
    groups = values.shape[1] // layout.GROUP
    scales, zeros = parts["wscales"][:groups].float().T, parts["wzeros"][:groups].float().T
    weight = _groups(values).mul_(scales[:, :, None]).add_(zeros[:, :, None])
    bias = parts["bias"].float().view(-1, MODULATIONS).T.clone()
    for scale in SCALES:  # one by one: a list of rows would be copied to the device and waited for
        bias[scale] -= 1
    return weight.view(-1, MODULATIONS, values.shape[1]).transpose(0, 1).flatten(0, 1), bias.flatten()


def _groups(weight: Tensor) -> Tensor:
    """A view [N, K/64, 64] of a weight [N, K]."""
    return weight.view(weight.shape[0], -1, layout.GROUP)


def _parts(tensors: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    names = ("qweight", "wscales", "bias", "smooth_factor", "proj_down", "proj_up")
    return {name: tensors[f"{module}.{name}"] for name in names}


def _check_finite(dense: Mapping[str, Tensor], packed: Mapping[str, Tensor], file: str) -> None:
    # aminmax lets a NaN through and needs no temporary; one stack makes it one wait for the device
    ranges = torch.stack([torch.stack(torch.aminmax(tensor)).float() for tensor in dense.values()])
    finite = ranges.isfinite().all(dim=1).tolist()
    if all(finite):
        return
    for name, tensor in packed.items():
        if name.endswith(".smooth_factor") and not bool(tensor.all()):
            raise CheckpointError(f"{file}: tensor {name!r} holds a zero, expected divisors")
    name = next(name for name, good in zip(dense, finite, strict=True) if not good)
    raise CheckpointError(f"{file}: tensor {name!r} of the dense model is not finite, expected numbers")
