"""The kernels' arithmetic in Triton's interpreter; `test_numerics.py` runs this file, with TRITON_INTERPRET=1."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton import language as tl
from triton.runtime import interpreter

from qwen_edit.model.transformer.fused import launch, twins
from qwen_edit.model.transformer.fused.choose import Kernels, differing
from qwen_edit.svdq import fp8

EPS = 1e-6
DTYPES = (torch.bfloat16, torch.float32)
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn}


@pytest.fixture(autouse=True)
def rounding_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the nearest, of two equally near ones to the even: what the compiled kernels ask for (`test_build.py`).

    The interpreter cuts off what bfloat16 has no bits for, and loses a carry into the exponent of fp8.
    """
    theirs = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if source != tl.float32 or target.name not in TORCH_DTYPES:
            return theirs(data, source, target, mode)
        rounded = torch.from_numpy(np.ascontiguousarray(data)).to(TORCH_DTYPES[target.name])
        bits = {1: torch.uint8, 2: torch.uint16}[rounded.element_size()]
        return rounded.view(bits).numpy().reshape(data.shape)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def positions(tokens: int, channels: int) -> Tensor:
    angles = random(tokens, channels // 2, seed=2) * 3
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def assert_within_a_rounding(ours: Tensor, right: Tensor, of: Tensor) -> None:
    """Equal but for a rounding of the numbers that a sum was made of; and of bfloat16 nearly all are equal."""
    assert ours.dtype == right.dtype
    assert ours.shape == right.shape
    assert ours.is_contiguous()
    most = torch.finfo(ours.dtype).eps * of.float().abs() * (1 if ours.dtype == torch.bfloat16 else 8)
    assert ((ours.float() - right.float()).abs() <= most).all()
    if ours.dtype == torch.bfloat16:
        assert (ours == right).float().mean() > 0.999


def stacked(batch: int, tokens: int, heads: int, channels: int, dtype: torch.dtype) -> Tensor:
    """Queries as a view into the product that has queries, keys and values."""
    return (20 * random(batch, tokens, 3, heads, channels)).to(dtype)[:, :, 0]


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "channels", "dtype"),
    [
        (1, 200, 8, 128, torch.bfloat16),
        (2, 15, 24, 128, torch.bfloat16),
        (2, 15, 24, 128, torch.float32),
        (1, 3, 24, 128, torch.bfloat16),
        (2, 5, 3, 64, torch.float32),
        (1, 7, 1, 24, torch.bfloat16),
    ],
)
def test_norm_rotate(batch: int, tokens: int, heads: int, channels: int, dtype: torch.dtype) -> None:
    x = stacked(batch, tokens, heads, channels, dtype)
    assert x.stride(1) == 3 * heads * channels
    given = (x, random(channels, dtype=dtype, seed=3), EPS, positions(tokens, channels))
    joint = torch.full((batch, 2 + tokens + 1, heads, channels), torch.nan, dtype=dtype)
    among_others = joint[:, 2:-1]

    assert launch.norm_rotate(*given, among_others) is among_others

    normed = torch.nn.functional.rms_norm(x, (channels,), given[1], EPS).float()
    pairs = normed.unflatten(-1, (-1, 2)).norm(dim=-1).repeat_interleave(2, dim=-1)
    right = twins.norm_rotate(*given, torch.empty(x.shape, dtype=dtype))
    assert_within_a_rounding(among_others.contiguous(), right, pairs)
    assert joint[:, :2].isnan().all()
    assert joint[:, -1].isnan().all()


def test_heads_may_lie_apart_where_queries_are_written() -> None:
    x = stacked(2, 3, 4, 16, torch.float32)
    given = (x, random(16, seed=3), EPS, positions(3, 16))
    apart = torch.full((2, 4, 3, 48), torch.nan)[..., :16].transpose(1, 2)

    launch.norm_rotate(*given, apart)

    right = twins.norm_rotate(*given, torch.empty(2, 3, 4, 16))
    assert_within_a_rounding(apart.contiguous(), right, torch.full_like(right, 10))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize(("tokens", "width"), [(33, 3072), (3, 3072), (5, 96), (4, 40)])
def test_modulate(tokens: int, width: int, members: int, dtype: torch.dtype) -> None:
    x = random(2, tokens + 2, width, dtype=dtype)[:, 1:-1] * 50 + 4  # the text's rows of a joint sequence
    scale, shift = random(members, 1, 2 * width, dtype=dtype, seed=3).chunk(2, dim=-1)

    normed = torch.nn.functional.layer_norm(x, (width,), eps=EPS)
    size = shift.float().abs() + (1 + scale.float()).abs() * (1 + normed.float().abs())
    # Of one member at a time, because the twin rounds once more for several.
    given = zip(x.split(1), scale.expand(2, -1, -1).split(1), shift.expand(2, -1, -1).split(1), strict=True)
    right = torch.cat([twins.modulate(*tensors, EPS) for tensors in given])
    assert_within_a_rounding(launch.modulate(x, scale, shift, EPS), right, size)


@pytest.mark.parametrize("function", ["modulate", "gated"])
def test_each_token_may_have_a_row_of_its_own(function: str) -> None:
    x, first, second = (random(2, 7, 3072, seed=seed) for seed in (1, 2, 3))
    given = (x, first, second, EPS) if function == "modulate" else (x, first, second)

    ours, right = (getattr(module, function)(*given) for module in (launch, twins))
    assert_within_a_rounding(ours, right, torch.full_like(x, 10))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize(("tokens", "width"), [(17, 3072), (3, 3072), (5, 96), (4, 40)])
def test_gated(tokens: int, width: int, members: int, dtype: torch.dtype) -> None:
    residual = random(2, tokens, width, dtype=dtype) * 50
    gate = random(members, 1, width, dtype=dtype, seed=3)
    update = random(2, tokens, width, dtype=dtype, seed=4)

    given = (residual, gate, update)
    size = residual.float().abs() + (gate.float() * update.float()).abs()
    assert_within_a_rounding(launch.gated(*given), twins.gated(*given), size)


def rows_of_all_sizes(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Rows whose largest values lie between 1e-30 and 1e30, one of zeros, and one whose values lie far apart."""
    matrix = random(rows, width) * torch.logspace(-30, 30, rows)[:, None]
    matrix[0] = 0
    matrix[1] *= torch.logspace(-10, 0, width)
    return matrix.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(199, 3072), (17, 12288), (3, 12288), (5, 272)])
def test_quantize_rows(rows: int, width: int, dtype: torch.dtype) -> None:
    matrix = rows_of_all_sizes(rows, width, dtype)

    (codes, scales), (right_codes, right_scales) = launch.quantize_rows(matrix), fp8.quantize_rows(matrix)

    assert codes.dtype == fp8.DTYPE
    assert torch.equal(scales, right_scales)
    apart = (codes.view(torch.int8).int() - right_codes.view(torch.int8).int()).abs()
    assert apart.max() <= 1
    assert (apart == 0).float().mean() > 0.999
    assert codes[2:].float().abs().amax(dim=1).eq(fp8.LARGEST).all()


@pytest.mark.parametrize(
    ("update", "fault"),
    [
        (random(1 + 2 * 3 * 48)[1:].view(2, 3, 48), lambda x: x.data_ptr() % 16),
        (random(2, 3, 50)[:, :, :48], lambda x: x.stride(1) % 16),
        (random(2, 3, 48, 16)[..., 0], lambda x: x.stride(2) - 1),
    ],
    ids=["address", "stride", "apart"],
)
def test_rows_are_copied_that_cannot_be_read_sixteen_bytes_at_a_time(
    update: Tensor, fault: Callable[[Tensor], int]
) -> None:
    given = (random(2, 3, 48, seed=2), random(1, 1, 48, seed=3), update)
    assert fault(update) != 0

    assert fault(launch.gating(*given, torch.empty(2, 3, 48)).arguments[2]) == 0
    assert_within_a_rounding(launch.gated(*given), twins.gated(*given), torch.full((2, 3, 48), 10.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_check_at_a_start_finds_nothing_wrong_with_them(dtype: torch.dtype) -> None:
    kernels = Kernels("triton", launch.norm_rotate, launch.modulate, launch.gated, launch.quantize_rows)

    assert differing(kernels, torch.device("cpu"), dtype, 24, 128, 3072) == []
