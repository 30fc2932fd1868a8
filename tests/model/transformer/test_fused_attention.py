import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from builder.made.tiny import TRANSFORMER
from qwen_edit.errors import ModelUnavailable
from qwen_edit.model.transformer.fused_attention import FusedJointAttention, fuse_attention
from qwen_edit.model.transformer.nunchaku import offload_blocks
from qwen_edit.model.transformer.nunchaku_engine import fused_product
from qwen_edit.model.transformer.packed_rotary import packed
from qwen_edit.model.transformer.rotary import RotaryTable
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.svdq.quantize import quantize, write_checkpoint
from tests.support.engine import STAND_IN, changed_engine, forget_engine, load

CONFIG = {**TRANSFORMER, "num_layers": 2, "num_attention_heads": 2}
RANK = 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of two heads, with another weight for every channel of every norm of queries and keys."""
    path = tmp_path_factory.mktemp("two_heads") / "checkpoint.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        tensors = QwenImageTransformer2DModel(**CONFIG).bfloat16().state_dict()
        for name, tensor in tensors.items():
            if ".attn.norm_" in name:
                tensor.uniform_(0.3, 2)
    write_checkpoint(path, quantize(tensors, CONFIG, RANK), CONFIG, RANK)
    return path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(STAND_IN))
    yield
    forget_engine()


def inputs(batch: int, text: int, shapes: list[tuple[int, int, int]]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    tokens = sum(height * width for _, height, width in shapes)
    return {
        "hidden_states": torch.randn(batch, tokens, 64, generator=generator),
        "encoder_hidden_states": torch.randn(batch, text, 128, generator=generator),
        "timestep": torch.full((batch,), 0.5),
        "img_shapes": [shapes] * batch,
    }


def attended(transformer: QwenImageTransformer2DModel, given: dict[str, Any]) -> Tensor:
    """What every attention adds to picture and text: the rest of a block would hide small differences."""
    added: list[Tensor] = []
    hooks = [
        block.attn.register_forward_hook(lambda _module, _args, output: added.extend(output))
        for block in transformer.transformer_blocks
    ]
    with torch.inference_mode():
        transformer(**given)
    for hook in hooks:
        hook.remove()
    assert len(added) == 2 * len(transformer.transformer_blocks)
    return torch.cat([one.flatten() for one in added]).float()


SHAPES = [
    (1, 7, [(1, 8, 6), (1, 8, 6)]),
    (1, 301, [(1, 16, 16)]),
    (1, 256, [(1, 20, 15), (1, 18, 10)]),
    (1, 19, [(1, 8, 6), (1, 9, 7), (1, 5, 12)]),
    (2, 13, [(1, 10, 14), (1, 12, 12)]),
    (2, 257, [(1, 13, 21)]),
]
"""Members of a batch, tokens of the text, pictures: the one that is made, and references."""


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("batch", "text", "shapes"), SHAPES)
def test_it_computes_what_the_engine_computes_without(
    batch: int, text: int, shapes: list[tuple[int, int, int]], checkpoint: Path
) -> None:
    given = inputs(batch, text, shapes)
    usual, fused = (attended(load(checkpoint, fused_qkv=fused_qkv), given) for fused_qkv in (False, True))

    assert (fused - usual).norm() < 1e-5 * usual.norm()


@pytest.mark.usefixtures("engine")
def test_in_bfloat16_it_is_as_near_to_the_exact_result(checkpoint: Path) -> None:
    given = inputs(2, 13, [(1, 10, 14), (1, 12, 12)])
    exact = attended(load(checkpoint), given)
    rounded = {name: value.bfloat16() if isinstance(value, Tensor) else value for name, value in given.items()}
    usual, fused = (
        (attended(load(checkpoint, torch.bfloat16, fused_qkv=fused_qkv), rounded) - exact).norm() / exact.norm()
        for fused_qkv in (False, True)
    )

    assert usual < 0.03
    assert fused < 1.1 * usual


@pytest.mark.usefixtures("engine")
def test_text_and_picture_pass_through_one_product_each_and_none_besides(checkpoint: Path) -> None:
    transformer = load(checkpoint, fused_qkv=True)
    product, calls = fused_product(), []

    def watched(
        x: Tensor, proj: nn.Module, norm_q: nn.Module, norm_k: nn.Module, rotary_emb: Tensor, *, output: Tensor
    ) -> Tensor:
        calls.append((proj, len(x), x.shape[1], rotary_emb.shape[1], output.shape))
        return product(x, proj, norm_q, norm_k, rotary_emb, output=output)

    attention = transformer.transformer_blocks[0].attn
    attention.processor = FusedJointAttention(watched)
    attended(transformer, inputs(1, 300, [(1, 16, 18)]))

    assert calls == [
        (attention.add_qkv_proj, 1, 300, 512, (300, 3 * 256)),
        (attention.to_qkv, 1, 288, 512, (288, 3 * 256)),
    ]


class OneChannel(nn.Module):
    """A layer for queries, keys and values of two heads, whose output has one channel that is not zero."""

    out_features = 3 * 256

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * nn.functional.one_hot(torch.tensor(self.channel), self.out_features)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("third", "head", "channel"), [(0, 0, 18), (0, 1, 74), (1, 0, 30), (1, 1, 90)])
def test_a_channel_turns_with_its_neighbour_by_the_angle_of_its_position(third: int, head: int, channel: int) -> None:
    table = RotaryTable([16, 56, 56])([[(1, 20, 15)]], [1])[0]
    norm = nn.RMSNorm(128)
    place = third * 256 + head * 128 + channel
    output = torch.empty(300, 3 * 256)
    fused_product()(torch.ones(1, 300, 4), OneChannel(place), norm, norm, packed(table), output=output)

    angle = table[:, channel // 2].angle()
    expected = torch.zeros(300, 3 * 256)
    expected[:, place], expected[:, place + 1] = 128**0.5 * angle.cos(), 128**0.5 * angle.sin()
    assert angle.abs().max() > 0.1
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("engine")
def test_values_are_neither_normed_nor_turned() -> None:
    table = RotaryTable([16, 56, 56])([[(1, 20, 15)]], [1])[0]
    output = torch.empty(300, 3 * 256)
    norm = nn.RMSNorm(128)
    fused_product()(torch.ones(1, 300, 4), OneChannel(2 * 256 + 140), norm, norm, packed(table), output=output)

    assert torch.equal(output[:, 2 * 256 :].nonzero()[:, 1], torch.full((300,), 140))
    assert output[:, 2 * 256 + 140].eq(1).all()


@pytest.mark.usefixtures("engine")
def test_the_copies_that_the_engine_makes_of_a_block_attend_likewise(checkpoint: Path) -> None:
    transformer, given = load(checkpoint, fused_qkv=True), inputs(1, 7, [(1, 8, 6)])
    expected = attended(transformer, given)
    offload_blocks(transformer)
    transformer.transformer_blocks[0] = copy.deepcopy(transformer.transformer_blocks[0])

    assert isinstance(transformer.transformer_blocks[0].attn.processor, FusedJointAttention)
    assert torch.equal(attended(transformer, given), expected)


@pytest.mark.usefixtures("engine")
def test_without_the_switch_the_engine_attends_by_itself(checkpoint: Path) -> None:
    transformer = load(checkpoint)

    assert type(transformer.pos_embed) is RotaryTable
    assert not any(isinstance(block.attn.processor, FusedJointAttention) for block in transformer.transformer_blocks)


@pytest.mark.usefixtures("engine")
def test_heads_that_the_kernel_does_not_have_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_edit.model.transformer.fused_attention.HEAD", 64)
    with pytest.raises(ModelUnavailable, match=r"has attention_head_dim 128, expected 64 with QWEN_EDIT_FUSED_QKV=1;"):
        load(checkpoint, fused_qkv=True)


@pytest.mark.usefixtures("engine")
def test_an_attention_that_takes_no_processor_is_told(checkpoint: Path) -> None:
    transformer = load(checkpoint)
    del transformer.transformer_blocks[1].attn.processor

    with pytest.raises(ModelUnavailable, match="the engine's attention has no processor, which QWEN_EDIT_FUSED_QKV=1"):
        fuse_attention(transformer, fused_product(), read_header(checkpoint))


NO_PRODUCT = (
    r"has no nunchaku\.ops\.fused\.fused_qkv_norm_rottary\(x, proj, norm_q, norm_k, rotary_emb, output\), "
    r"which QWEN_EDIT_FUSED_QKV=1 calls; leave that out"
)


@pytest.mark.parametrize(
    "change",
    [
        "del fused_qkv_norm_rottary",
        "def fused_qkv_norm_rottary(x, proj, norm_q, norm_k, rotary_emb): ...",
        "raise ImportError('it was built without')",
    ],
)
def test_an_engine_without_the_operation_is_told_and_serves_without_the_switch(
    change: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_engine(tmp_path, "ops/fused.py", change)
    monkeypatch.syspath_prepend(str(tmp_path))

    try:
        with pytest.raises(ModelUnavailable, match=NO_PRODUCT):
            load(checkpoint, fused_qkv=True)
        attended(load(checkpoint), inputs(1, 7, [(1, 8, 6)]))
    finally:
        forget_engine()
