from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qwen_edit.svdq.engine import engine_block
from qwen_edit.svdq.modules import NORMS, block_prefix

PADDED = ("_mod.1.wscales", "_mod.1.wzeros")


@pytest.fixture(scope="module")
def packed(tiny_file: Path) -> dict[str, Tensor]:
    prefix = block_prefix(1)
    return {name: tensor for name, tensor in load_file(tiny_file).items() if name.startswith(prefix)}


def test_all_but_the_norms_are_the_files_own_tensors(packed: dict[str, Tensor]) -> None:
    norms = {f"{block_prefix(1)}{norm}.weight" for norm in NORMS}

    block = engine_block(packed, 1, "file", torch.float32)

    assert block.keys() == packed.keys()
    assert {name for name in packed if block[name].data_ptr() != packed[name].data_ptr()} == norms
    assert {block[name].dtype for name in norms} == {torch.float32}


def test_rows_that_pad_the_scales_of_a_narrow_model_are_left_out(packed: dict[str, Tensor]) -> None:
    padded = {
        name: torch.nn.functional.pad(tensor, (0, 0, 0, 14), value=torch.nan) if name.endswith(PADDED) else tensor
        for name, tensor in packed.items()
    }

    block = engine_block(padded, 1, "file", torch.bfloat16)

    assert sum(padded[name].shape != packed[name].shape for name in packed) == 4
    assert all(torch.equal(block[name], packed[name]) for name in packed)
