from pathlib import Path

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from qwen_edit.model.transformer.block import Block
from qwen_edit.model.transformer.dense import build_dense
from qwen_edit.model.transformer.expansion import FORMATS, Expanded, expand, portions_of
from qwen_edit.store.catalog import LIGHTNING
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.weights.reader import Weights
from tests.support.stock import stock_transformer

CPU = torch.device("cpu")


def expanded(path: Path) -> Expanded:
    info = read_header(path)
    with Weights([path], CPU, portions={path: portions_of(info, FORMATS["dense"])}) as weights:
        return expand(info, weights.portions(path), FORMATS["dense"], torch.float32)


def build(models: Path) -> QwenImageTransformer2DModel:
    return build_dense(expanded(models / LIGHTNING.path))


def test_it_computes_nearly_what_the_stock_model_with_the_dense_weights_computes(models: Path) -> None:
    checkpoint = expanded(models / LIGHTNING.path)
    ours, stock = build_dense(checkpoint), stock_transformer(models / LIGHTNING.path)
    inputs = {
        "hidden_states": torch.randn(1, 8 * 6, 64),
        "encoder_hidden_states": torch.randn(1, 7, 128),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, 8, 6)]],
    }

    with torch.inference_mode():
        assert checkpoint.modulations is not None
        with checkpoint.modulations.looked_up(ours, torch.tensor([500.0]), torch.float32) as set_step:
            set_step(0)
            assert torch.allclose(ours(**inputs).sample, stock(**inputs).sample, atol=1e-5, rtol=1e-5)


def test_nothing_stays_on_the_meta_device(models: Path) -> None:
    transformer = build(models)

    tensors = [*transformer.parameters(), *transformer.buffers()]
    tensors += [transformer.pos_embed.pos_freqs]
    assert not any(tensor.is_meta for tensor in tensors)
    assert not any(tensor.requires_grad for tensor in tensors)


def test_its_configuration_is_the_checkpoints_though_its_blocks_are_ours(models: Path) -> None:
    transformer = build(models)

    assert dict(transformer.config).items() >= read_header(models / LIGHTNING.path).config.items()
    assert len(transformer.transformer_blocks) == transformer.config.num_layers
    assert {type(block) for block in transformer.transformer_blocks} == {Block}


def test_the_modulations_are_not_among_its_weights(models: Path) -> None:
    weights = build(models).state_dict()

    assert not [name for name in weights if "_mod." in name]
