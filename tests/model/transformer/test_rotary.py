import gc
import weakref

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

from qwen_edit.model.transformer.rotary import KEPT, THETA, RealRotaryTable, RotaryTable

AXES = [16, 56, 56]
CPU = torch.device("cpu")


def test_the_tables_are_those_of_the_stock_class() -> None:
    pictures = [[(1, 16, 24), (1, 64, 60)]]
    ours = RotaryTable(AXES)(pictures, device=CPU, max_txt_seq_len=20)
    stock = QwenEmbedRope(THETA, AXES, scale_rope=True)(pictures, device=CPU, max_txt_seq_len=20)
    assert all(torch.equal(table, other) for table, other in zip(ours, stock, strict=True))


def test_in_real_numbers_they_are_cosines_and_sines_and_the_first_picture_is_drawn() -> None:
    pictures = [[(1, 16, 24), (1, 64, 60)]]
    at = RealRotaryTable(AXES)(pictures, device=CPU, max_txt_seq_len=20)
    picture, text = RotaryTable(AXES)(pictures, device=CPU, max_txt_seq_len=20)
    for ours, frequencies in ((at.picture, picture), (at.text, text)):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, torch.stack([frequencies.real, frequencies.imag], dim=-1))
    assert at.drawn == 16 * 24


def test_only_the_last_tables_are_kept() -> None:
    rotary = RotaryTable(AXES)
    for height in range(2, 2 * KEPT):
        rotary([[(1, height, 4)]], device=CPU, max_txt_seq_len=4)
    assert rotary._of_picture.cache_info().currsize == KEPT


def test_a_transformers_tables_go_with_it() -> None:
    rotary = RotaryTable(AXES)
    rotary([[(1, 4, 4)]], device=CPU, max_txt_seq_len=4)
    gone = weakref.ref(rotary)
    del rotary
    gc.collect()
    assert gone() is None
