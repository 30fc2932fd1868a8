import gc
import math
import weakref

import pytest
import torch

from qwen_edit.model.transformer.packed_rotary import PackedRotaryTable, packed
from qwen_edit.model.transformer.rotary import KEPT, RotaryTable

AXES = [16, 56, 56]
PICTURES = [[(1, 16, 24), (1, 17, 15)]]
"""639 tokens, which end within a block."""

TEXT = 77


def in_the_threads(angles: list[list[float]], blocks: int) -> list[float]:
    """What the threads of the kernel take, one after the other, where the angles are by token and pair of channels."""
    numbers = []
    for tile in range(blocks * 256 // 16):
        for four_pairs in range(16):
            for thread in range(32):
                for half in range(2):
                    token, pair = tile * 16 + half * 8 + thread // 4, four_pairs * 4 + thread % 4
                    exists = token < len(angles)
                    numbers += [f(angles[token][pair]) if exists else 0.0 for f in (math.sin, math.cos)]
    return numbers


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (255, 1), (256, 1), (257, 2)])
def test_each_thread_finds_sine_and_cosine_of_its_tokens_and_pair(tokens: int, blocks: int) -> None:
    angles = torch.rand(tokens, 64, generator=torch.Generator().manual_seed(1)) * 6
    table = packed(torch.polar(torch.ones_like(angles), angles))

    assert (table.shape, table.dtype) == ((1, blocks * 256, 128), torch.float32)
    assert table.is_contiguous()
    torch.testing.assert_close(table.flatten(), torch.tensor(in_the_threads(angles.tolist(), blocks)))


def test_the_tables_are_the_usual_ones_packed() -> None:
    usual = RotaryTable(AXES)(PICTURES, [TEXT], device=torch.device("cpu"))
    ours = PackedRotaryTable(AXES)(PICTURES, [TEXT], device=torch.device("cpu"))

    assert [table.shape[1] for table in ours] == [768, 256]
    assert all(torch.equal(table, packed(other)) for table, other in zip(ours, usual, strict=True))


def test_a_batch_has_the_tables_of_one_and_both_ways_of_asking_give_them() -> None:
    table = PackedRotaryTable(AXES)
    picture, text = table(PICTURES, [TEXT])

    assert all(map(torch.equal, table(PICTURES * 2, [TEXT - 2, TEXT]), (picture, text)))
    assert all(map(torch.equal, table(PICTURES, max_txt_seq_len=TEXT), (picture, text)))


def test_a_text_without_a_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="the length of the text is missing"):
        PackedRotaryTable(AXES)(PICTURES)


def test_a_step_takes_the_tables_of_the_step_before_and_only_the_last_are_kept() -> None:
    table = PackedRotaryTable(AXES)
    first = table(PICTURES, [TEXT])

    assert table(PICTURES, [TEXT]) is first
    for length in range(KEPT):
        table(PICTURES, [length + 1])
    assert table(PICTURES, [TEXT]) is not first


def test_a_transformers_tables_go_with_it() -> None:
    table = PackedRotaryTable(AXES)
    table(PICTURES, [TEXT])
    gone = weakref.ref(table)
    del table
    gc.collect()
    assert gone() is None
