from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

from qwen_edit.catalog import LIGHTNING
from qwen_edit.models.transformer_dense import load_dense
from qwen_edit.svdq import dense_state_dict, read_header
from qwen_edit.weights.reader import Weights


def load(path: Path) -> QwenImageTransformer2DModel:
    with Weights([path], torch.device("cpu")) as weights:
        return load_dense(read_header(path), weights.tensors(path), torch.float32)


def test_it_computes_what_a_stock_model_with_the_dense_weights_computes(models) -> None:
    path = models / LIGHTNING.path
    ours = load(path)
    stock = QwenImageTransformer2DModel(**{k: v for k, v in ours.config.items() if not k.startswith("_")}).eval()
    stock.load_state_dict(dense_state_dict(path, torch.float32))
    inputs = {
        "hidden_states": torch.randn(1, 8 * 6, 64),
        "encoder_hidden_states": torch.randn(1, 7, 128),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, 8, 6)]],
    }

    with torch.inference_mode():
        assert torch.equal(ours(**inputs).sample, stock(**inputs).sample)


def test_it_is_expanded_block_by_block_to_what_the_whole_file_means(models) -> None:
    path = models / LIGHTNING.path
    ours, whole = load(path).state_dict(), dense_state_dict(path, torch.float32)

    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_nothing_stays_on_the_meta_device(models) -> None:
    transformer = load(models / LIGHTNING.path)

    tensors = [*transformer.parameters(), *transformer.buffers()]
    tensors += [transformer.pos_embed.pos_freqs, transformer.pos_embed.neg_freqs]
    assert not any(tensor.is_meta for tensor in tensors)
    assert not any(tensor.requires_grad for tensor in tensors)
