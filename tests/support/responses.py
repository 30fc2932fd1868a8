"""A response of the contract, made up."""

from qwen_edit.contract.request import MAX_SEED
from qwen_edit.contract.response import EditResponse, ModelInfo, Timings

PICTURES = {"image": "aGVsbG8=", "images": ["aGVsbG8="]}
URLS = {"url": "https://example.com/0.png", "urls": ["https://example.com/0.png"]}


def a_response(**pictures: object) -> EditResponse:
    """With the pictures or addresses that are given, else with one picture."""
    stages = ("decode", "prompt", "vae_encode", "denoise", "vae_decode", "encode")
    return EditResponse(
        **(pictures or PICTURES),
        format="png",
        width=1024,
        height=768,
        seed=MAX_SEED,
        model_info=ModelInfo(
            worker_version="0.1.0",
            base_model="Qwen/Qwen-Image-Edit",
            checkpoint="checkpoint.safetensors",
            repository="tiny",
            revision=None,
            sha256="0" * 64,
            precision="int4",
            backend="nunchaku",
            device="cuda",
            dtype="bfloat16",
            rank=128,
            steps=8,
            true_cfg_scale=1.0,
            scheduler={"shift": 1.0, "shift_terminal": None, "use_dynamic_shifting": True, "base_image_seq_len": 256},
            supported_ranks=[128],
            supported_steps=[8],
            default_rank=128,
            default_steps=8,
        ),
        timings=Timings(**dict.fromkeys(stages, 1.5), total=9.0, cold=True),
        warnings=["one sentence"],
    )
