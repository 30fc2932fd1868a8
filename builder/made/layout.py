"""Writes the parts of a small model in the production layout and in the published formats; the same bytes each time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

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


def write_configurations(base: Path, transformer: Mapping[str, Any]) -> None:
    """Everything of the base model that is neither weights nor words."""
    write_json(base / "model_index.json", MODEL_INDEX)
    write_json(base / "scheduler" / "scheduler_config.json", SCHEDULE)
    write_json(base / "transformer" / "config.json", {"_class_name": "QwenImageTransformer2DModel", **transformer})
    write_json(base / "processor" / "preprocessor_config.json", PREPROCESSOR)


def write_tokenizer(base: Path, merges: Sequence[str] = ()) -> None:
    """A byte-level tokenizer in the published file format, for the tokenizer and the processor.

    Args:
        merges: pairs of tokens with a space between, in the order in which they are made.
    """
    tokens = vocabulary(merges)
    added = {str(len(tokens) + i): _special(token) for i, token in enumerate(SPECIAL_TOKENS)}
    for folder in (base / "tokenizer", base / "processor"):
        write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        write_json(
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


def vocabulary(merges: Sequence[str] = ()) -> list[str]:
    """The tokens of `write_tokenizer` by their ids, without the special ones."""
    return list(dict.fromkeys([*sorted(ByteLevel.alphabet()), *(pair.replace(" ", "") for pair in merges)]))


def token_id(token: str, merges: Sequence[str] = ()) -> int:
    """The id that `write_tokenizer` gives a special token."""
    return len(vocabulary(merges)) + SPECIAL_TOKENS.index(token)


def _special(token: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": token, **flags}


def text_encoder_config(width: int, merges: Sequence[str] = ()) -> dict[str, Any]:
    """A small Qwen2.5-VL for the tokenizer of these merges, in the published format.

    Args:
        width: of its hidden states, a multiple of 128.
    """
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "image_token_id": token_id("<|image_pad|>", merges),
        "video_token_id": token_id("<|video_pad|>", merges),
        "vision_start_token_id": token_id("<|vision_start|>", merges),
        "vision_end_token_id": token_id("<|vision_end|>", merges),
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": len(vocabulary(merges)) + len(SPECIAL_TOKENS),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "bos_token_id": None,
            "eos_token_id": token_id("<|im_end|>", merges),
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
            "out_hidden_size": width,
        },
    }


def write_text_encoder(folder: Path, config: Mapping[str, Any], model: nn.Module) -> None:
    """A `Qwen2_5_VLForConditionalGeneration` in bfloat16, in two files as the published one is in several."""
    tensors = {published_name(name): tensor for name, tensor in bf16(model).items()}
    write_json(folder / "config.json", config)
    vision = {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    language = {name: tensor for name, tensor in tensors.items() if name not in vision}
    weight_map: dict[str, str] = {}
    for number, part in enumerate((language, vision), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        (folder / file).write_bytes(save(part, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def published_name(name: str) -> str:
    """Today's names → those of the published files, which are older."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def write_vae(folder: Path, config: Mapping[str, Any], model: nn.Module) -> None:
    """An `AutoencoderKLQwenImage` in bfloat16."""
    write_json(folder / "config.json", {"_class_name": "AutoencoderKLQwenImage", **_public(config)})
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(save(bf16(model), metadata={"format": "pt"}))


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without diffusers' own notes, one of which is a set in no order."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def bf16(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as it is stored."""
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in module.state_dict().items()}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON file, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
