import pytest
import torch
from torch import Tensor

from qwen_edit.model.transformer.fused.twins import gated, modulate, norm_rotate

EPS = 1e-6
TOKENS, HEADS, CHANNELS = 5, 3, 8


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def stacked_part(dtype: torch.dtype, batch: int = 2) -> Tensor:
    """Keys, as they lie in a product with queries and values: [batch, tokens, heads, channels]."""
    return random(batch, TOKENS, 3, HEADS, CHANNELS, dtype=dtype).unbind(2)[1]


def angles() -> Tensor:
    return torch.linspace(-4, 4, TOKENS * CHANNELS // 2).view(TOKENS, CHANNELS // 2)


def positions() -> Tensor:
    return torch.stack([angles().cos(), angles().sin()], dim=-1)


def turned(x: Tensor) -> Tensor:
    """Pairs of channels as complex numbers, turned."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones(1).double(), angles().double())[:, None]).flatten(-2)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x / (x.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * weight.double()


@pytest.mark.parametrize("batch", [1, 2])
def test_queries_are_normed_and_turned_to_where_they_are_wanted(batch: int) -> None:
    x, weight = stacked_part(torch.float32, batch), random(CHANNELS, dtype=torch.float32)
    joint = torch.full((batch, 2 + TOKENS, HEADS, CHANNELS), torch.nan)
    out = joint[:, 2:]

    assert norm_rotate(x, weight, EPS, positions(), out) is out

    assert not x.is_contiguous()
    assert out.is_contiguous() == (batch == 1)
    assert joint[:, :2].isnan().all()
    torch.testing.assert_close(joint[:, 2:].double(), turned(normed(x, weight)), rtol=0, atol=1e-5)


def test_the_norm_is_rounded_with_its_weight_and_the_rotation_after_it() -> None:
    x, weight = stacked_part(torch.bfloat16), random(CHANNELS, dtype=torch.bfloat16)

    result = norm_rotate(x, weight, EPS, positions(), torch.empty(x.shape, dtype=torch.bfloat16))

    expected = turned(normed(x, weight).bfloat16()).bfloat16()
    assert result.dtype == torch.bfloat16
    # The angles are in float32, so that a few values are rounded to the other side.
    assert (result == expected).double().mean() > 0.97
    torch.testing.assert_close(result, expected, rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_what_is_modulated_is_normed_scaled_and_shifted(rows: int, dtype: torch.dtype, bound: float) -> None:
    x = random(2, TOKENS, 64, dtype=dtype)
    shift, scale, _ = random(rows, 1, 3 * 64, dtype=dtype).chunk(3, dim=-1)

    result = modulate(x, scale, shift, EPS)

    wide = x.double()
    expected = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, correction=0, keepdim=True) + EPS).sqrt()
    assert result.dtype == dtype
    assert result.is_contiguous()
    torch.testing.assert_close(result.double(), expected * (1 + scale.double()) + shift.double(), rtol=0, atol=bound)


@pytest.mark.parametrize("rows", [1, 2])
def test_an_update_is_added_through_its_gate_and_rounded_once(rows: int) -> None:
    residual, update = (random(2, TOKENS, 64, dtype=torch.bfloat16) * size for size in (1, 3))
    gate = random(rows, 1, 64, dtype=torch.bfloat16)

    result = gated(residual, gate, update)

    expected = residual.double() + gate.double() * update.double()
    assert result.dtype == torch.bfloat16
    assert ((result.double() - expected).abs() <= 2**-8 * expected.abs()).all()
