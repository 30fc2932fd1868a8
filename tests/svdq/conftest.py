"""Checkpoints to test with: one quantized from a stock model, one of random numbers, as small as the format allows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from qwen_edit.svdq.modules import expected_tensors
from qwen_edit.svdq.quantize import quantize, write_checkpoint

DTYPES = {"I8": torch.int8, "I32": torch.int32, "BF16": torch.bfloat16}


@pytest.fixture(scope="session")
def tiny_config() -> dict[str, Any]:
    """Two blocks, 256 wide."""
    return {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 128, "joint_attention_dim": 128}


@pytest.fixture(scope="session")
def tiny_model(tiny_config: dict[str, Any]) -> QwenImageTransformer2DModel:
    torch.manual_seed(7)
    return QwenImageTransformer2DModel(**tiny_config).eval()


@pytest.fixture(scope="session")
def tiny_file(
    tiny_model: QwenImageTransformer2DModel, tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    write_checkpoint(path, quantize(tiny_model.state_dict(), tiny_config, rank=128), tiny_config, rank=128)
    return path


@pytest.fixture(scope="session")
def small_config() -> dict[str, Any]:
    """One block of one head, 128 wide."""
    return {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 128, "joint_attention_dim": 64}


@pytest.fixture(scope="session")
def small_tensors(small_config: dict[str, Any]) -> dict[str, Tensor]:
    """Random numbers in every tensor, rank 16."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, spec in expected_tensors(small_config, rank=16).items():
        data = torch.randint(0, 256, (spec.bytes,), generator=generator, dtype=torch.uint8)
        values = torch.rand(spec.shape, generator=generator) + 0.5
        tensors[name] = values.bfloat16() if spec.dtype == "BF16" else data.view(DTYPES[spec.dtype]).view(spec.shape)
    return tensors


@pytest.fixture(scope="session")
def small_file(
    small_tensors: dict[str, Tensor], small_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    write_checkpoint(path, small_tensors, small_config, rank=16)
    return path
