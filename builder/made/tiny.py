"""A small random model of the real architecture, in the production layout: what tests need."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from builder.made import layout
from builder.made.publish import publishing
from qwen_edit.store.catalog import BASE_FOLDER, CHECKPOINTS, RANK
from qwen_edit.svdq.quantize import quantize, write_checkpoint

REPOSITORY = "tiny"
REVISION = "random"

TEXT_WIDTH = 128

TRANSFORMER = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_WIDTH,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56],
}

VAE = {"base_dim": 8, "z_dim": 16, "num_res_blocks": 1}


def write(models: Path, transformer: Mapping[str, Any] = TRANSFORMER) -> None:
    """Write the tiny model below `models`, the same bytes each time.

    Args:
        transformer: the configuration of its transformer, whose `joint_attention_dim` is `TEXT_WIDTH`.

    Raises:
        BakeError: as for `publishing`.
    """
    with publishing(models, REPOSITORY, REVISION) as folder:
        base = folder / BASE_FOLDER
        layout.write_configurations(base, transformer)
        layout.write_tokenizer(base)
        _write_text_encoder(base / "text_encoder")
        _write_vae(base / "vae")
        for seed, checkpoint in enumerate(CHECKPOINTS, start=10):
            _write_checkpoint(folder / checkpoint.path, seed, transformer)


def _write_checkpoint(path: Path, seed: int, transformer: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, quantize(_random_transformer(seed, transformer), transformer, RANK), transformer, RANK)


def _write_text_encoder(folder: Path) -> None:
    config = layout.text_encoder_config(TEXT_WIDTH)
    with _seeded(1):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(config))
    layout.write_text_encoder(folder, config, model)


def _write_vae(folder: Path) -> None:
    with _seeded(2):
        vae = AutoencoderKLQwenImage(**VAE)
        # A random decoder paints a flat grey: with a larger last layer its noise can be seen, and told apart by seed.
        vae.decoder.conv_out.weight.data.mul_(2)
    layout.write_vae(folder, vae.config, vae)


def _random_transformer(seed: int, config: Mapping[str, Any]) -> dict[str, Tensor]:
    with _seeded(seed):
        return layout.bf16(QwenImageTransformer2DModel(**config))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
