import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from qwen_edit.catalog import LIGHTNING
from qwen_edit.errors import ModelUnavailable
from qwen_edit.models.transformer_dense import load_dense
from qwen_edit.svdq import dense_state_dict

CPU = torch.device("cpu")


def test_it_computes_what_a_stock_model_with_the_dense_weights_computes(models) -> None:
    path = models / LIGHTNING.path
    ours = load_dense(path, CPU, torch.float32)
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


def test_nothing_stays_on_the_meta_device(models) -> None:
    transformer = load_dense(models / LIGHTNING.path, CPU, torch.float32)

    tensors = [*transformer.parameters(), *transformer.buffers()]
    tensors += [transformer.pos_embed.pos_freqs, transformer.pos_embed.neg_freqs]
    assert not any(tensor.is_meta for tensor in tensors)
    assert not any(tensor.requires_grad for tensor in tensors)


def test_a_missing_checkpoint_is_named(tmp_path) -> None:
    with pytest.raises(ModelUnavailable, match=r"gone\.safetensors"):
        load_dense(tmp_path / "gone.safetensors", CPU, torch.float32)
