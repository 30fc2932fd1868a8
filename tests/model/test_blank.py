import subprocess
import sys

import pytest
import torch
from torch import nn

from qwen_edit.errors import ModelUnavailable
from qwen_edit.model.blank import WithoutMemory, assign_tensors


class Rotary(nn.Module):
    """A linear layer, a table that no checkpoint holds, and a tensor that is a plain attribute."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.register_buffer("table", torch.arange(4) / 2, persistent=False)
        self.plain = torch.outer(torch.arange(3), torch.ones(2, device="cpu"))


def test_parameters_take_no_memory_and_tables_are_computed() -> None:
    with WithoutMemory():
        module = Rotary()
    assert {name for name, parameter in module.named_parameters() if parameter.is_meta} == dict(
        module.named_parameters()
    ).keys()
    assert module.table.tolist() == [0, 0.5, 1, 1.5]
    assert module.plain.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_a_skeleton_does_not_import_the_compiler() -> None:
    program = """
import sys, torch
from qwen_edit.model.blank import WithoutMemory
with WithoutMemory():
    layer = torch.nn.Linear(4, 4)
    torch.nn.init.normal_(layer.weight)
print(layer.weight.is_meta, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_tensors_with_memory_are_initialized_as_ever() -> None:
    with WithoutMemory():
        tensor = nn.init.ones_(torch.full((2,), 7.0))
    assert tensor.tolist() == [1, 1]


def test_the_tensors_become_the_parameters_without_a_copy() -> None:
    with WithoutMemory():
        module = nn.Linear(2, 2)
    weight = torch.ones(2, 2)
    assign_tensors(module, {"weight": weight, "bias": torch.zeros(2)}, "part")
    assert module.weight.data_ptr() == weight.data_ptr()
    assert not module.weight.requires_grad
    assert not module.training


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"weight": torch.ones(2, 2)}, r"part has the tensor bias as missing, its configuration expects \(2,\)"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, r"part has the tensor weight as \(3, 2\), .* \(2, 2\)"),
        (
            {"weight": torch.ones(2, 2), "bias": torch.ones(2), "other": torch.ones(1)},
            r"part has the tensor other as \(1,\), its configuration expects no such tensor",
        ),
    ],
)
def test_tensors_that_are_not_the_modules_are_named(tensors: dict[str, torch.Tensor], told: str) -> None:
    with WithoutMemory():
        module = nn.Linear(2, 2)
    with pytest.raises(ModelUnavailable, match=told):
        assign_tensors(module, tensors, "part")
