from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwen_edit.svdq import layout

Convert = Callable[[Tensor], Tensor]
WIDTH = 3072


def random_bytes(dtype: torch.dtype, *shape: int) -> Tensor:
    size = torch.tensor([], dtype=dtype).element_size()
    data = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8)
    return data.view(dtype)


def assert_inverse(unpack: Convert, pack: Convert, packed: Tensor) -> None:
    plain = unpack(packed)
    again = pack(plain)
    assert again.dtype == packed.dtype
    assert again.shape == packed.shape
    assert torch.equal(again.contiguous().view(torch.uint8), packed.view(torch.uint8))
    assert torch.equal(unpack(again).contiguous().view(torch.uint8), plain.contiguous().view(torch.uint8))


def assert_svdq_layouts_are_inverse(outputs: int, inputs: int, rank: int) -> None:
    for unpack, pack, packed in (
        (layout.unpack_qweight, layout.pack_qweight, random_bytes(torch.int8, outputs, inputs // 2)),
        (layout.unpack_wscales, layout.pack_wscales, random_bytes(torch.bfloat16, inputs // 64, outputs)),
        (layout.unpack_vector, layout.pack_vector, random_bytes(torch.bfloat16, outputs)),
        (layout.unpack_vector, layout.pack_vector, random_bytes(torch.bfloat16, inputs)),
        (layout.unpack_proj_up, layout.pack_proj_up, random_bytes(torch.bfloat16, outputs, rank)),
        (layout.unpack_proj_down, layout.pack_proj_down, random_bytes(torch.bfloat16, inputs, rank)),
    ):
        assert_inverse(unpack, pack, packed)


sizes = st.integers(1, 3).map(lambda tiles: tiles * 128)


@settings(deadline=None, max_examples=30)
@given(outputs=sizes, inputs=sizes, rank=st.integers(1, 5).map(lambda tiles: tiles * 16))
def test_packing_undoes_unpacking_at_any_size(outputs: int, inputs: int, rank: int) -> None:
    assert_svdq_layouts_are_inverse(outputs, inputs, rank)
    packed = random_bytes(torch.int32, outputs // 4, inputs // 2)
    assert_inverse(layout.unpack_awq_qweight, layout.pack_awq_qweight, packed)


@pytest.mark.parametrize(
    ("outputs", "inputs", "rank"),
    [
        (3 * WIDTH, WIDTH, 128),
        (WIDTH, WIDTH, 128),
        (4 * WIDTH, WIDTH, 32),
        (WIDTH, 4 * WIDTH, 32),
    ],
)
def test_packing_undoes_unpacking_at_the_sizes_of_the_real_layers(outputs: int, inputs: int, rank: int) -> None:
    assert_svdq_layouts_are_inverse(outputs, inputs, rank)


def test_packing_undoes_unpacking_at_the_size_of_the_real_modulation() -> None:
    packed = random_bytes(torch.int32, 6 * WIDTH // 4, WIDTH // 2)
    assert_inverse(layout.unpack_awq_qweight, layout.pack_awq_qweight, packed)


@pytest.mark.parametrize(
    ("n", "k", "byte", "high"),
    [
        (0, 0, 0, False),
        (0, 1, 0, True),
        (0, 2, 1, False),
        (0, 8, 16, False),
        (0, 32, 4, False),
        (0, 64, 4096, False),
        (1, 0, 64, False),
        (8, 0, 8, False),
        (16, 0, 512, False),
        (128, 0, 8192, False),
        (255, 127, 16383, True),
    ],
)
def test_a_residual_weight_lies_where_the_kernel_reads_it(n: int, k: int, byte: int, high: bool) -> None:
    values = torch.zeros(256, 128, dtype=torch.int8)
    values[n, k] = -3  # 1101 in four bits
    packed = layout.pack_qweight(values).flatten().view(torch.uint8)
    assert packed.nonzero().flatten().tolist() == [byte]
    assert packed[byte] == (0xD0 if high else 0x0D)


def test_residual_weights_follow_the_index_formula() -> None:
    packed = random_bytes(torch.int8, 256, 64)
    data = packed.flatten().view(torch.uint8).tolist()
    expected = torch.empty(256, 128, dtype=torch.int8)
    places = product(*map(range, (2, 2, 8, 8, 4, 2, 2, 8)))
    for index, (nt, kt, np, nl, kl, ns, ks, e) in enumerate(places):
        nibble = data[index // 2] >> 4 * (index % 2) & 15
        expected[128 * nt + 16 * np + 8 * ns + nl, 64 * kt + 32 * ks + 8 * kl + e] = (
            nibble - 16 if nibble > 7 else nibble
        )
    assert torch.equal(layout.unpack_qweight(packed), expected)


@pytest.mark.parametrize(
    ("channel", "place"), [(0, 0), (1, 1), (2, 4), (7, 13), (8, 2), (9, 3), (16, 16), (127, 127), (130, 132)]
)
def test_a_bias_lies_where_the_kernel_reads_it(channel: int, place: int) -> None:
    vector = torch.zeros(256)
    vector[channel] = 1
    assert layout.pack_vector(vector).nonzero().flatten().tolist() == [place]


@pytest.mark.parametrize(
    ("n", "group", "place"), [(0, 0, 0), (2, 0, 4), (8, 1, 128 + 2), (128, 0, 2 * 128), (130, 1, 3 * 128 + 4)]
)
def test_a_weight_scale_lies_where_the_kernel_reads_it(n: int, group: int, place: int) -> None:
    scales = torch.zeros(256, 2)
    scales[n, group] = 1
    assert layout.pack_wscales(scales).flatten().nonzero().flatten().tolist() == [place]


@pytest.mark.parametrize(
    ("row", "r", "up", "down"),
    [(0, 1, 1, 32), (0, 2, 8, 64), (0, 8, 2, 4), (1, 0, 32, 1), (2, 0, 64, 8), (8, 0, 4, 2), (16, 16, 768, 768)],
)
def test_a_low_rank_factor_lies_where_the_kernel_reads_it(row: int, r: int, up: int, down: int) -> None:
    factor = torch.zeros(32, 32)
    factor[row, r] = 1
    assert layout.pack_proj_up(factor).flatten().nonzero().flatten().tolist() == [up]
    assert layout.pack_proj_down(factor).flatten().nonzero().flatten().tolist() == [down]


@pytest.mark.parametrize(
    ("n", "k", "nibble"), [(0, 0, 0), (0, 1, 4), (0, 8, 1), (0, 32, 32), (0, 64, 256), (1, 0, 64), (4, 0, 512)]
)
def test_a_modulation_weight_lies_where_the_kernel_reads_it(n: int, k: int, nibble: int) -> None:
    values = torch.zeros(128, 128, dtype=torch.uint8)
    values[n, k] = 13
    packed = layout.pack_awq_qweight(values).flatten().view(torch.uint8)
    assert packed.nonzero().flatten().tolist() == [nibble // 2]
    assert packed[nibble // 2] == 13 << 4 * (nibble % 2)


def test_modulation_weights_follow_the_index_formula() -> None:
    packed = random_bytes(torch.int32, 32, 64)
    words = packed.view(torch.int16).flatten().tolist()
    expected = torch.empty(128, 128, dtype=torch.uint8)
    for index, word in enumerate(words):
        row4, tile, row, half, j = index // 128, index // 64 % 2, index // 16 % 4, index // 8 % 2, index % 8
        for p in range(4):
            expected[4 * row4 + row, 64 * tile + 32 * half + 8 * p + j] = word >> 4 * p & 15
    assert torch.equal(layout.unpack_awq_qweight(packed), expected)
