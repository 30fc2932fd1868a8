import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors import safe_open
from torch import Tensor

from qwen_edit.svdq import layout
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.svdq.dense import dense_modulation, dense_svdq
from qwen_edit.svdq.modules import expected_tensors
from qwen_edit.svdq.quantize import quantize, quantize_modulation, quantize_svdq, write_checkpoint
from tests.support.dense import dense_state_dict

WRITE = """
import sys
from pathlib import Path
import torch
from diffusers import QwenImageTransformer2DModel
from qwen_edit.svdq.quantize import quantize, write_checkpoint

config = {"num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 64}
torch.manual_seed(0)
tensors = quantize(QwenImageTransformer2DModel(**config).state_dict(), config, rank=16)
write_checkpoint(Path(sys.argv[1]), tensors, config, rank=16)
"""


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def test_two_processes_write_the_same_bytes_on_any_number_of_threads(tmp_path: Path) -> None:
    digests = set()
    for threads in ("1", "2"):
        path = tmp_path / threads
        environ = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", WRITE, str(path)], env=environ, check=True)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_written_file_passes_the_check_and_says_what_it_is(tiny_file: Path, tiny_config: dict[str, Any]) -> None:
    info = read_header(tiny_file)
    assert info.rank == 128
    assert info.metadata["model_class"] == "NunchakuQwenImageTransformer2DModel"
    assert json.loads(info.metadata["quantization_config"])["rank"] == 128
    assert {field: info.config[field] for field in tiny_config} == tiny_config


def test_a_written_file_is_read_back_by_safetensors(
    small_file: Path, small_tensors: dict[str, Tensor], small_config: dict[str, Any]
) -> None:
    with safe_open(small_file, framework="pt") as file:
        assert set(file.keys()) == set(expected_tensors(small_config, rank=16))
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in small_tensors.items())


def test_the_tensors_of_a_written_file_are_aligned(small_file: Path) -> None:
    item = {"I8": 1, "BF16": 2, "I32": 4}
    entries = list(read_header(small_file).tensors.values())
    assert entries[0].offset % 8 == 0
    assert all(entry.offset % item[entry.dtype] == 0 for entry in entries)


def test_a_tensor_that_is_not_contiguous_is_written_in_its_order(
    small_tensors: dict[str, Tensor], small_config: dict[str, Any], small_file: Path, tmp_path: Path
) -> None:
    name = "proj_out.weight"
    turned = small_tensors | {name: small_tensors[name].T.contiguous().T}
    write_checkpoint(tmp_path / "turned", turned, small_config, rank=16)
    assert (tmp_path / "turned").read_bytes() == small_file.read_bytes()


def test_quantizing_leaves_the_source_as_it_is(small_config: dict[str, Any]) -> None:
    torch.manual_seed(4)
    source = QwenImageTransformer2DModel(**small_config).state_dict()
    before = {name: tensor.clone() for name, tensor in source.items()}
    tensors = quantize(source, small_config, rank=16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.items())
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: spec.shape for name, spec in expected_tensors(small_config, rank=16).items()
    }


def test_every_weight_of_a_quantized_model_is_near_its_source(
    tiny_model: QwenImageTransformer2DModel, tiny_file: Path
) -> None:
    dense = dense_state_dict(tiny_file, torch.float32)
    for name, source in tiny_model.state_dict().items():
        assert relative_error(dense[name], source) < 0.08, name


@pytest.mark.parametrize("rank", [16, 64, 128])
def test_a_low_rank_weight_with_outliers_survives(rank: int) -> None:
    torch.manual_seed(6)
    weight = torch.randn(256, 4) @ torch.randn(4, 256) + 0.01 * torch.randn(256, 256)
    weight[:, 17] *= 50
    bias = torch.randn(256)
    got, got_bias = dense_svdq(quantize_svdq(weight, bias, rank))
    assert relative_error(got, weight) < 0.002
    assert torch.equal(got_bias, bias.bfloat16().float())


def test_the_residual_makes_up_for_the_rounding_of_the_low_rank_factors() -> None:
    torch.manual_seed(8)
    weight = torch.randn(128, 16) @ torch.randn(16, 128)
    parts = quantize_svdq(weight, torch.zeros(128), rank=16)
    factors = layout.unpack_proj_up(parts["proj_up"]).float() @ layout.unpack_proj_down(parts["proj_down"]).float().T
    got, _ = dense_svdq(parts)
    assert relative_error(got, weight) < relative_error(factors, weight) / 5


def test_the_signs_of_the_low_rank_factors_are_fixed() -> None:
    torch.manual_seed(12)
    up = layout.unpack_proj_up(quantize_svdq(torch.randn(256, 128), torch.zeros(256), rank=64)["proj_up"])
    assert (up.amax(dim=0) >= -up.amin(dim=0)).all()


def test_a_rank_above_that_of_the_layer_is_filled_with_zeros() -> None:
    torch.manual_seed(9)
    weight = torch.randn(128, 128)
    got, _ = dense_svdq(quantize_svdq(weight, torch.zeros(128), rank=144))
    assert relative_error(got, weight) < 0.001


def test_a_layer_of_zeros_stays_one() -> None:
    got, bias = dense_svdq(quantize_svdq(torch.zeros(128, 128), torch.zeros(128), rank=16, shift=0.171875))
    assert not got.any()
    assert not bias.any()
    weight, modulation_bias = dense_modulation(quantize_modulation(torch.zeros(768, 128), torch.zeros(768)))
    assert not weight.any()
    assert not modulation_bias.any()


def test_a_modulation_on_the_grid_comes_back_exactly() -> None:
    torch.manual_seed(10)
    steps = torch.randint(-7, 9, (768, 2, 64))
    steps[..., 0] = 8  # each group uses its whole range
    weight = (steps * 0.0078125).flatten(1)
    bias = torch.randn(768).bfloat16().float()
    bias[128:256] = bias[512:640] = 0.25
    got, got_bias = dense_modulation(quantize_modulation(weight, bias))
    assert torch.equal(got, weight)
    assert torch.equal(got_bias, bias)


def test_a_modulation_stores_its_channels_interleaved_and_the_one_of_its_scales() -> None:
    bias = torch.arange(6.0).repeat_interleave(128)
    parts = quantize_modulation(torch.randn(768, 128), bias)
    assert parts["bias"].view(128, 6)[5].tolist() == [0, 2, 2, 3, 5, 5]
    assert torch.equal(parts["wzeros"], -7 * parts["wscales"])
