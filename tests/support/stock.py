"""What diffusers makes of a model by itself: the reference that our loop and our backends are compared with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageEditPipeline
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature

from qwen_edit.edit.plan import Plan
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.model.prompt import HEAD, TAIL, PromptEncoder
from qwen_edit.svdq.checkpoint import read_header
from tests.support.dense import dense_state_dict


def stock_transformer(path: Path, dtype: torch.dtype = torch.float32) -> QwenImageTransformer2DModel:
    """The stock transformer with what a checkpoint means, its modulation layers among it, on the CPU."""
    transformer = QwenImageTransformer2DModel(**read_header(path).config).to(dtype)
    transformer.load_state_dict(dense_state_dict(path, dtype))
    return transformer.eval()


class Processor:
    """Tokenizer and image processor as the stock pipeline calls them: transformers' own needs torchvision."""

    def __init__(self, prompts: PromptEncoder) -> None:
        self._prompts = prompts

    def __call__(
        self, text: Sequence[str], images: Image.Image, padding: bool = True, return_tensors: str = "pt"
    ) -> BatchFeature:
        (filled,) = text
        assert padding
        assert return_tensors == "pt"
        inputs = self._prompts.inputs(filled.removeprefix(HEAD).removesuffix(TAIL), images)
        return BatchFeature(inputs._asdict())


def stock_pipeline(pipeline: EditPipeline, transformer: QwenImageTransformer2DModel) -> QwenImageEditPipeline:
    """diffusers' own pipeline around the parts of ours and a transformer."""
    stock = QwenImageEditPipeline(
        scheduler=pipeline.scheduler,
        vae=pipeline.vae,
        text_encoder=pipeline.prompts.text_encoder,
        tokenizer=None,
        processor=Processor(pipeline.prompts),
        transformer=transformer,
    )
    stock.set_progress_bar_config(disable=True)
    return stock


def stock_latents(pipeline: QwenImageEditPipeline, picture: Image.Image, prompt: str, plan: Plan) -> Tensor:
    """What the stock pipeline denoises for a plan: packed latents, [batch, tokens, channels · 4]."""
    asked: dict[str, Any] = {
        "image": picture,
        "prompt": prompt,
        "negative_prompt": plan.negative_prompt,
        "true_cfg_scale": plan.true_cfg_scale,
        "width": plan.width,
        "height": plan.height,
        "num_inference_steps": plan.steps,
        "num_images_per_prompt": plan.num_images,
        "generator": [torch.Generator().manual_seed(plan.seed + i) for i in range(plan.num_images)],
    }
    latents: Tensor = pipeline(**asked, output_type="latent").images
    return latents
