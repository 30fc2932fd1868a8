"""The pipeline from its parts: what comes with the base model once, and what comes with a checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.backend import BackendName
from qwen_edit.model.content_cache import ContentCache
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.model.pixels import VaePixels
from qwen_edit.model.prompt import EditProcessor
from qwen_edit.model.text_encoder import load_text_encoder
from qwen_edit.model.transformer.dense import build_dense
from qwen_edit.model.transformer.expansion import Expanded
from qwen_edit.model.transformer.nunchaku import load_nunchaku
from qwen_edit.model.vae import load_vae
from qwen_edit.store.catalog import Checkpoint
from qwen_edit.weights.reader import Weights, folder_tensors


def load_base(base: Path, weights_of: Callable[[Path], Weights], dtype: torch.dtype) -> EditPipeline:
    """Everything but the transformer and its scheduler, which come with a checkpoint.

    Args:
        base: the folder of the base model.
        weights_of: what hands out a weight file.
        dtype: of all parts.

    Raises:
        ModelUnavailable: a part is missing or damaged.
    """
    with _readable("tokenizer"):
        tokenizer = Qwen2Tokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
    with _readable("processor"):
        processor = EditProcessor.load(tokenizer, base / "processor")
    with _readable("text_encoder"):
        text_encoder = load_text_encoder(
            base / "text_encoder", folder_tensors(weights_of, base / "text_encoder", dtype)
        )
    with _readable("vae"):
        vae = load_vae(base / "vae", folder_tensors(weights_of, base / "vae", dtype))
    pipeline = EditPipeline(
        scheduler=None,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        processor=processor,
        transformer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.image_processor = VaePixels(vae_scale_factor=pipeline.vae_scale_factor * 2)
    pipeline.contents = ContentCache()
    return pipeline


def load_scheduler(base: Path, checkpoint: Checkpoint) -> FlowMatchEulerDiscreteScheduler:
    """The checkpoint's own schedule, or the base model's where it has none.

    Raises:
        ModelUnavailable: the base model's is missing or damaged.
    """
    with _readable("scheduler"):
        schedule = checkpoint.schedule or FlowMatchEulerDiscreteScheduler.load_config(base / "scheduler")
        return FlowMatchEulerDiscreteScheduler.from_config(dict(schedule))


def build_transformer(backend: BackendName, expanded: Expanded) -> QwenImageTransformer2DModel:
    """The transformer of a backend around what was expanded by its recipe.

    Raises:
        ModelUnavailable: the tensors are not those of the checkpoint's configuration, or the engine is not there.
    """
    if backend == "nunchaku":
        transformer = load_nunchaku(expanded.info, expanded.tensors, expanded.dtype)
    else:
        transformer = build_dense(expanded, fp8=backend == "dense-fp8")
    # No step is skipped by a cache here, and to find that out diffusers imports the compiler and asks every module.
    transformer.cache_context = lambda _name: nullcontext()
    return transformer


@contextmanager
def _readable(part: str) -> Iterator[None]:
    """Translate what the libraries raise on a damaged configuration."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(
            f"the base model's {part} cannot be loaded; check it with python3 verify_models.py"
        ) from error
