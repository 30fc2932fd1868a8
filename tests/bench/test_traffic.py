import pytest
import torch
from torch.nn import functional

from bench.gpu.traffic import PICTURE, TEXT, T, Traffic, empty, shares, traffic_of


def test_views_and_products_move_nothing_and_what_is_written_in_place_is_read_once() -> None:
    x, layer, traffic = empty(1, 64, 32), torch.nn.Linear(32, 32, device="meta", dtype=torch.bfloat16), Traffic()

    with torch.inference_mode(), traffic:
        functional.linear(x, layer.weight, layer.bias)
        x.unflatten(-1, (2, 16)).transpose(1, 2).contiguous().view(1, 128, 16)  # one copy
        torch.add(x, x[:, :, :1], out=torch.empty_like(x))

    assert traffic.products == 1
    assert traffic.calls == {"aten.contiguous": 1, "aten.add": 1}
    assert traffic.bytes == {"aten.contiguous": 2 * x.nbytes, "aten.add": 2 * x.nbytes + 64 * 2}


def test_our_block_moves_less_than_half_of_what_the_stock_block_moves() -> None:
    picture, text = shares("ours")

    assert picture <= 45
    assert text / picture == pytest.approx(TEXT / PICTURE, rel=0.01)
    assert picture < shares("stock")[0] / 2
    assert traffic_of("ours").calls.total() < traffic_of("stock").calls.total() * 0.6


def test_with_one_kernel_for_each_function_a_block_moves_a_quarter_of_what_the_stock_block_moves() -> None:
    picture, text = shares("kernels")

    assert picture <= 25
    assert text / picture == pytest.approx(TEXT / PICTURE, rel=0.01)


def test_one_kernel_for_each_function_reads_and_writes_once() -> None:
    traffic = traffic_of("kernels")

    tokens = (PICTURE + TEXT) / PICTURE
    assert traffic.calls["norm_rotate"] == traffic.calls["modulate"] == traffic.calls["gated"] == 4
    assert traffic.bytes["gated"] / T == pytest.approx(2 * 3 * tokens, rel=0.001)
    assert traffic.bytes["modulate"] / T == pytest.approx(2 * 2 * tokens, rel=0.001)
    # Cosines and sines, which all heads share, come to a twelfth of the queries.
    assert traffic.bytes["norm_rotate"] / T == pytest.approx(2 * (2 + 1 / 12) * tokens, rel=0.001)
