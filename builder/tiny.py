"""A small random model of the real architecture, in the production layout: what tests and a first run need."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from safetensors.torch import save
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from builder import record
from qwen_edit.catalog import BASE_FOLDER, CHECKPOINTS, RANK
from qwen_edit.manifest import FILE_NAME, Entry, Manifest
from qwen_edit.svdq.quantize import quantize, write_checkpoint

REPOSITORY = "tiny"
REVISION = "random"
"""What `manifest.json` says of the source, so that no reply can pass these weights off as the real ones."""

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

# The base model's own schedule, for the original checkpoint.
SCHEDULE = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}

MODEL_INDEX = {
    "_class_name": "QwenImageEditPipeline",
    "processor": ["transformers", "Qwen2VLProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}

PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "temporal_patch_size": 2,
}

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def write(models: Path, transformer: Mapping[str, Any] = TRANSFORMER) -> None:
    """Write the tiny model below `models`, the same bytes each time.

    Args:
        transformer: the configuration of its transformer, whose `joint_attention_dim` is `TEXT_WIDTH`.
    """
    base = models / BASE_FOLDER
    _write_json(base / "model_index.json", MODEL_INDEX)
    _write_json(base / "scheduler" / "scheduler_config.json", SCHEDULE)
    _write_json(base / "transformer" / "config.json", {"_class_name": "QwenImageTransformer2DModel", **transformer})
    write_tokenizer(base / "tokenizer")
    write_tokenizer(base / "processor")
    _write_json(base / "processor" / "preprocessor_config.json", PREPROCESSOR)
    _write_text_encoder(base / "text_encoder")
    _write_vae(base / "vae")
    for seed, checkpoint in enumerate(CHECKPOINTS, start=10):
        path = models / checkpoint.path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, quantize(_random_transformer(seed, transformer), transformer, RANK), transformer, RANK)
    write_manifest(models)


def write_manifest(models: Path) -> None:
    """List every file below `models` in its `manifest.json`."""
    files = sorted(path for path in models.rglob("*") if path.is_file() and path.name != FILE_NAME)
    record.write(models, Manifest(tuple(_entry(path, models) for path in files)))


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer in the published file format: one token a byte, then the special ones."""
    alphabet = sorted(ByteLevel.alphabet())
    added = {str(len(alphabet) + i): _special(token) for i, token in enumerate(SPECIAL_TOKENS)}
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(alphabet)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "eos_token": "<|im_end|>",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
        },
    )


def _special(token: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": token, **flags}


def token_id(token: str) -> int:
    """The id that `write_tokenizer` gives a special token."""
    return len(ByteLevel.alphabet()) + SPECIAL_TOKENS.index(token)


def _text_encoder_config() -> dict[str, Any]:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": len(ByteLevel.alphabet()) + len(SPECIAL_TOKENS),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "bos_token_id": None,
            "eos_token_id": token_id("<|im_end|>"),
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1000000.0},
        },
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 2,
            "fullatt_block_indexes": [1],
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": TEXT_WIDTH,
        },
    }


def _write_text_encoder(folder: Path) -> None:
    with _seeded(1):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(_text_encoder_config()))
    tensors = {_published_name(name): tensor for name, tensor in _bf16(model).items()}
    _write_json(folder / "config.json", _text_encoder_config())
    vision = {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    language = {name: tensor for name, tensor in tensors.items() if name not in vision}
    weight_map: dict[str, str] = {}
    for number, part in enumerate((language, vision), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        (folder / file).write_bytes(save(part, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _published_name(name: str) -> str:
    """Today's names → those of the published files, which are older."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def _write_vae(folder: Path) -> None:
    with _seeded(2):
        vae = AutoencoderKLQwenImage(**VAE)
        # A random decoder paints a flat grey: with a larger last layer its noise can be seen, and told apart by seed.
        vae.decoder.conv_out.weight.data.mul_(2)
    _write_json(folder / "config.json", {"_class_name": "AutoencoderKLQwenImage", **_public(vae.config)})
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(save(_bf16(vae), metadata={"format": "pt"}))


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without diffusers' own notes, one of which is a set in no order."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _random_transformer(seed: int, config: Mapping[str, Any]) -> dict[str, Tensor]:
    with _seeded(seed):
        return _bf16(QwenImageTransformer2DModel(**config))


def _bf16(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in module.state_dict().items()}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _entry(path: Path, models: Path) -> Entry:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Entry(path.relative_to(models).as_posix(), path.stat().st_size, digest, REPOSITORY, REVISION)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
