from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qwen_edit.svdq.checkpoint import CheckpointError
from qwen_edit.svdq.dense import dense_block
from qwen_edit.svdq.fp8 import FP8_MODULES, fp8_block, quantize_rows

QUANTIZED = [f"transformer_blocks.1.{module}.weight" for module in FP8_MODULES]


@pytest.fixture(scope="module")
def packed(tiny_file: Path) -> dict[str, Tensor]:
    return load_file(tiny_file)


def test_the_layers_that_are_quantized_are_all_but_the_modulations(packed: dict[str, Tensor]) -> None:
    weights = [name for name, tensor in dense_block(packed, 1, "").items() if tensor.dim() == 2]

    assert sorted(QUANTIZED) == sorted(weights)
    assert len(QUANTIZED) == 8


def test_what_is_not_quantized_is_what_the_dense_block_has(packed: dict[str, Tensor]) -> None:
    ours, dense = fp8_block(packed, 1, ""), dense_block(packed, 1, "")

    assert ours.keys() - dense.keys() == {f"{name}_scale" for name in QUANTIZED}
    for name in dense.keys() - set(QUANTIZED):
        assert ours[name].dtype == torch.bfloat16
        assert torch.equal(ours[name], dense[name])


def test_a_weight_is_quantized_from_float32(packed: dict[str, Tensor]) -> None:
    ours, dense = fp8_block(packed, 1, ""), dense_block(packed, 1, "", torch.float32)

    for name in QUANTIZED:
        weight, scale = ours[name], ours[f"{name}_scale"]
        assert (weight.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
        assert scale.shape == (dense[name].shape[0], 1)
        assert torch.equal(weight, quantize_rows(dense[name])[0])
        assert (weight.float() * scale - dense[name]).norm() < 0.03 * dense[name].norm()


def test_each_value_is_within_a_sixteenth() -> None:
    matrix = torch.randn(64, 512) * torch.logspace(-6, 6, 64)[:, None]
    matrix = torch.where(matrix.abs() < 1e-3 * matrix.abs().amax(dim=1, keepdim=True), 0, matrix)
    values, scales = quantize_rows(matrix)

    assert ((values.float() * scales - matrix).abs() <= matrix.abs() / 16).all()
    assert (values.float().abs().amax(dim=1) == 448).all()


def test_a_row_of_zeros_stays_one() -> None:
    values, scales = quantize_rows(torch.zeros(2, 32))

    assert not values.float().any()
    assert scales.isfinite().all()


@pytest.mark.parametrize("part", ["wscales", "smooth_factor", "bias", "proj_up"])
def test_a_value_that_is_no_number_is_refused(part: str, packed: dict[str, Tensor]) -> None:
    name = f"transformer_blocks.1.attn.to_qkv.{part}"
    damaged = packed[name].clone()
    damaged.view(-1)[5] = torch.nan

    with pytest.raises(CheckpointError, match=r"^model_unavailable: FILE: tensor .* is not finite"):
        fp8_block({**packed, name: damaged}, 1, "FILE")
