from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.blocks import TEXT, Blocks


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("heads", "channels"), [(3, 16), (2, 128)])
@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_it_computes_what_the_stock_block_computes(heads: int, channels: int, zero_cond_t: bool, batch: int) -> None:
    blocks = Blocks(heads, channels, zero_cond_t=zero_cond_t)

    for ours, stock in zip(*blocks.outputs(blocks.inputs(batch)), strict=True):
        assert ours.shape == stock.shape
        assert (ours - stock).abs().max() < 1e-5


def test_the_text_that_does_not_count_is_not_looked_at() -> None:
    blocks = Blocks(2, 16)
    given = blocks.inputs(batch=2)
    mask = torch.ones(2, TEXT, dtype=torch.bool)
    mask[0, 4:] = False

    masked, stock = blocks.outputs({**given, "encoder_hidden_states_mask": mask})

    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(masked, stock, strict=True))
    assert not torch.allclose(masked[1], blocks.outputs(given)[0][1], atol=1e-3)


def cast(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The inputs in a dtype, but for the positions."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and not value.is_complex() else value
        for name, value in given.items()
    }


@pytest.mark.parametrize("batch", [1, 2])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_stock_block(batch: int) -> None:
    blocks = Blocks(4, 128).to(torch.bfloat16)
    given = cast(blocks.inputs(batch), torch.bfloat16)
    ours, stock = blocks.outputs(given)
    _, truth = blocks.to(torch.float32).outputs(cast(given, torch.float32))

    # They are printed where pytest is told not to capture them.
    print(f"batch {batch}: error of ours {error(ours, truth):.5f}, of the stock block {error(stock, truth):.5f}")
    assert 0 < error(ours, truth) <= 1.1 * error(stock, truth)


def error(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> float:
    """The norm of what two outputs are away from the truth, over the norm of that."""
    away = torch.cat([(one.double() - exact).flatten() for one, exact in zip(found, truth, strict=True)])
    return float(away.norm() / torch.cat([exact.double().flatten() for exact in truth]).norm())
